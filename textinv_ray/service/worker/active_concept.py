"""The concepts that a worker holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.store.history import History


@dataclass(eq=False)
class ActiveConcept:
    """A concept from its lease until its result is written, or until it is lost. Compared by identity.

    A worker may hold a lease of a concept, lose it, and get a new one: these are two active concepts.
    """

    task: ConceptTask
    images_mtime_digest: str
    """See `plan.images_mtime_digest`."""
    history: History
    reviews: dict[int, bool]
    """Steps at which samples are made -> whether they are scored."""
    checkpoint: Future[None] | None = None
    """The write of the last checkpoint, from the moment it was queued."""

    @property
    def concept_id(self) -> str:
        """The id in the manifest."""
        return self.task.concept.concept_id

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint waits to be written."""
        return self.checkpoint is not None and not self.checkpoint.done()


class ActiveConcepts:
    """All active concepts of a worker. Safe to use from its three threads: loop, heartbeat and writer.

    At most one per concept_id. They are removed by identity: a thread that is done with an earlier lease of a concept
    can't remove the one of the present lease.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, ActiveConcept] = {}
        self._lock = threading.Lock()

    def add(self, active: ActiveConcept) -> None:
        """Raises ValueError when another one of this concept_id is there."""
        with self._lock:
            if active.concept_id in self._by_id:
                raise ValueError(f"{active.concept_id!r} is active already")
            self._by_id[active.concept_id] = active

    def remove(self, active: ActiveConcept) -> bool:
        """Whether it was there."""
        with self._lock:
            if self._by_id.get(active.concept_id) is not active:
                return False
            del self._by_id[active.concept_id]
            return True

    def get(self, concept_id: str) -> ActiveConcept | None:
        """The one of this id."""
        with self._lock:
            return self._by_id.get(concept_id)

    def of(self, task: ConceptTask) -> ActiveConcept:
        """The one whose task this is. Raises KeyError."""
        active = self.get(task.concept.concept_id)
        if active is None or active.task is not task:
            raise KeyError(task.concept.concept_id)
        return active

    def __contains__(self, active: ActiveConcept) -> bool:
        return self.get(active.concept_id) is active

    def __iter__(self) -> Iterator[ActiveConcept]:
        """Over a snapshot."""
        with self._lock:
            return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)
