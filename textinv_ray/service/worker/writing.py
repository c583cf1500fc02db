"""Writing: checkpoints, pictures and results, from a thread, so that the device doesn't wait for the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from textinv_ray.concepts import image_features, word_files
from textinv_ray.concepts.image_features import ImageFeatures
from textinv_ray.inversion.review import Review
from textinv_ray.service.store import features
from textinv_ray.service.store.pictures import HELDOUT, TRAINING, sample_grid, training_grid
from textinv_ray.service.store.store import sample_name
from textinv_ray.service.worker import artifacts
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.context import WorkerContext
from textinv_ray.util.logs import about
from textinv_ray.util.redact import redact


class Writer:
    """A queue of writes, done one by one in the order in which they were asked for.

    Contents are fixed when a write is asked for, whatever happens to the concept meanwhile. By the time of the write
    the worker may have lost the concept, so checkpoints and results are written only if the scheduler still wants
    them. Pictures always are: they depend on the concept alone, and a history that is written later counts on them.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._writes: list[Future[None]] = []
        self._saved_at = time.monotonic()

    @property
    def pending(self) -> int:
        """Writes that aren't done yet."""
        return sum(not write.done() for write in self._writes)

    def check(self) -> None:
        """Raises what went wrong in a write, such as StoreError."""
        writes, self._writes = self._writes, []
        for write in writes:
            if write.done():
                write.result()
            else:
                self._writes.append(write)

    def close(self) -> None:
        """Waits for all writes. Raises as `check` does."""
        self._thread.shutdown(wait=True)
        self.check()

    def then(self, concept_id: str, action: Callable[[], None]) -> Future[None]:
        """Runs an action for a concept after all writes that were asked for so far."""

        def run() -> None:
            with about(concept_id):
                action()

        write = self._thread.submit(run)
        self._writes.append(write)
        return write

    def training_images(self, active: ActiveConcept) -> None:
        """Writes training.png, and heldout.png where images are held out."""
        concept = active.task.concept
        store, concept_id = self._context.store, active.concept_id
        self.then(
            concept_id, lambda: store.write_concept(concept_id, TRAINING, training_grid(concept.images))
        )
        if (heldout := concept.heldout) is not None:
            self.then(concept_id, lambda: store.write_concept(concept_id, HELDOUT, training_grid(heldout)))

    def samples(self, active: ActiveConcept, step: int, samples: Mapping[str, np.ndarray]) -> None:
        """Writes the samples of a step. samples: prompt -> uint8 (n, H, W, 3)."""
        store, concept_id = self._context.store, active.concept_id
        self.then(
            concept_id, lambda: store.write_concept(concept_id, sample_name(step), sample_grid(samples))
        )

    def save_when_due(self) -> None:
        """Writes checkpoints of all concepts every `service.checkpoint_every_s`.

        While the store is away, one checkpoint of each waits for it, not a queue of them.
        """
        if time.monotonic() - self._saved_at >= self._context.config.service.checkpoint_every_s:
            self.save(active for active in self._context.concepts if not active.is_saving)
            self._saved_at = time.monotonic()

    def save(self, concepts: Iterable[ActiveConcept]) -> None:
        """Writes a checkpoint of each that still learns."""
        for active in concepts:
            if not active.task.done:
                active.history.set_losses(active.task.loss_history.tolist())
                active.checkpoint = self.then(active.concept_id, self._checkpoint_of(active))

    def _checkpoint_of(self, active: ActiveConcept) -> Callable[[], None]:
        context, concept_id = self._context, active.concept_id
        state, history, step = active.task.to_bytes(), active.history.to_bytes(), active.task.step

        def write() -> None:
            # Leased to this worker again, it has begun from what was in the store: that must not change under it.
            is_superseded = context.concepts.get(concept_id) not in (active, None)
            if not is_superseded and context.scheduler.may_write(context.name, concept_id):
                context.store.checkpoint(concept_id, state, history)
                context.scheduler.saved(context.name, concept_id, step)

        return write

    def finish(self, active: ActiveConcept, review: Review) -> None:
        """Writes the result of a concept that is done. `review`: of its last step.

        The result is as good when the lease was lost meanwhile and even when the worker has a new one: then the
        scheduler tells the worker to drop that.
        """
        context, concept_id, task = self._context, active.concept_id, active.task
        active.history.set_losses(task.loss_history.tolist())
        word, nearest_words = context.engine.split(task.vectors), context.engine.nearest_words(task.vectors)
        result = artifacts.result(
            task, active.history, word, nearest_words, review.samples, active.images_mtime_digest
        )
        token, initial = task.concept.placeholder_token, context.engine.split(task.initial_word)
        files = {
            name: word_files.store_word(token, {encoder: part.numpy() for encoder, part in vectors.items()})
            for name, vectors in ((word_files.STORED, word), (word_files.INITIAL, initial))
        } | {
            "state.safetensors": task.to_bytes(),
            "history.parquet": active.history.to_bytes(),
        }
        scoring = context.config.scoring
        if review.image_features is not None:
            found = ImageFeatures(review.image_features, redact(scoring.model), task.concept.model_identity)
            files[image_features.FILE] = found.to_bytes()
        if review.features:
            files[features.FILE] = features.to_bytes(
                {redact(scoring.judge or scoring.model): review.features}
            )

        def write() -> None:
            if context.scheduler.may_write(context.name, concept_id):
                context.store.finish(result, files)
                context.scheduler.ack(context.name, concept_id)
            context.concepts.remove(active)

        self.then(concept_id, write)
