"""A concept in a worker's hands."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.store.history import History


@dataclass
class ActiveConcept:
    """A concept in work."""

    task: ConceptTask
    images_mtime_digest: str
    """See `concepts.images.LocalFiles.mtime_digest`."""
    history: History
    reviews: dict[int, bool]
    """Steps at which there are samples to make, and whether to score them too."""
    writes: list[Future[None]] = field(default_factory=list)
    checkpoint: Future[None] | None = None
    """The last one, as soon as it was asked for."""

    @property
    def concept_id(self) -> str:
        """The concept's id."""
        return self.task.concept.concept_id

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint waits to be written."""
        return self.checkpoint is not None and not self.checkpoint.done()

    def check_writes(self) -> None:
        """Forgets writes that are done. Raises what went wrong in one."""
        for written in self.writes:
            if written.done():
                written.result()
        self.writes = [written for written in self.writes if not written.done()]
