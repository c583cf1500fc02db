"""Leasing: how concepts come to a worker, and how it gives them up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion.pack import is_out_of_memory
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.scheduling.leases import Lease
from textinv_ray.service.scheduling.protocol import Answer, PayloadLostError, Pending
from textinv_ray.service.worker import artifacts
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.context import WorkerContext
from textinv_ray.service.worker.heartbeat import Heartbeat
from textinv_ray.service.worker.slots import Slots
from textinv_ray.service.worker.writing import Writer
from textinv_ray.util.logs import about

logger = logging.getLogger(__name__)


class Leasing:
    """Takes leases and makes their concepts active; ends those that are lost, fail, or find no memory."""

    def __init__(self, context: WorkerContext, slots: Slots, writer: Writer, heartbeat: Heartbeat) -> None:
        self._context = context
        self._scheduler = context.scheduler
        self._concepts = context.concepts
        self._slots = slots
        self._writer = writer
        self._heartbeat = heartbeat
        self._busy_at = time.monotonic()
        self._last = Answer((), over=False)
        self._more: Pending[bool] | None = None
        """Where the last answer had no lease: answers when another may have."""
        self._held = 0
        """Active concepts at that time."""

    def take(self, count: int, shape: str = "", wait_s: float = 0.0) -> list[ActiveConcept] | None:
        """Takes up to `count` leases and makes their concepts active. None when there will never be more.

        Where there were none before, the scheduler is asked again when it may have some. `shape`: that their images
        must be of; empty: of any one. `wait_s`: for how long may be waited here.
        """
        if self._is_in_vain(shape, wait_s):
            return None if self._goes(self._last) else []
        with self._context.lease_lock:
            answer = self._scheduler.take(self._context.name, count, shape)
            for lease in answer.leases:
                before = self._concepts.get(lease.concept_id)
                if before:  # lost, and leased to this worker again before it heard of that
                    self._drop(before)
        if self._goes(answer):
            return None
        self._last, self._held = answer, len(self._concepts)
        self._more = None if answer.leases else self._scheduler.more(answer)
        begun = []
        for lease in answer.leases:
            with about(lease.concept_id):
                begun.append(self._begin(lease))
        return [active for active in begun if active]

    def _is_in_vain(self, shape: str, wait_s: float) -> bool:
        """Whether asking for leases would bring no more than the last time."""
        # With fewer concepts than then, or with an empty pack, this worker may get what it couldn't then
        is_freer = len(self._concepts) < self._held or shape != self._last.shape
        if self._more is None or is_freer or self._more.answer(wait_s) is not None:
            self._more = None
            return False
        return True

    def _goes(self, answer: Answer) -> bool:
        """Whether there is nothing more for this worker, or nothing for so long that it frees its machine."""
        if self._concepts or answer.leases or not answer.no_pending:
            self._busy_at = time.monotonic()
        elif time.monotonic() - self._busy_at > self._context.config.service.release_after_s:
            logger.info("nothing is left but what others learn: this worker goes")
            return True
        return answer.over and not answer.leases

    def _begin(self, lease: Lease) -> ActiveConcept | None:
        """Makes a concept active, where its last state in the store ends. None when there is nothing to learn."""
        start = time.monotonic()
        self._heartbeat.tick()
        context, concept_id = self._context, lease.concept_id
        try:
            prepared = self._scheduler.fetch(lease)
        except PayloadLostError:
            logger.warning("%s: the scheduler that leased it is gone", concept_id)
            self._scheduler.give_back(context.name, concept_id)
            return None
        concept = Concept.from_bytes(prepared.row)
        result = context.store.result(concept_id)
        is_own = result is not None and result.fingerprint == concept.fingerprint
        if result and is_own and lease.attempt > 1:
            # A worker was lost after it had written that and before it told the scheduler
            context.store.settle(result)
            self._scheduler.ack(context.name, concept_id)
            return None
        try:
            task = context.engine.task(concept)
        except ValueError as error:
            self._report_failure(concept_id, str(error))
            return None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._lacks_memory(concept_id)
            return None
        self._restore(task)
        history = artifacts.history_of(context.store, task, context.config)
        history.at(task.step, time.monotonic() - start)
        reviews = artifacts.review_steps(concept, context.config)
        active = ActiveConcept(task, prepared.images_mtime_digest, history, reviews)
        self._concepts.add(active)
        if result and not is_own:  # its pictures and its history are about to be replaced
            context.store.reopen(concept_id)
        self._writer.training_images(active)
        logger.info("%s: from step %d of %d, attempt %d", concept_id, task.step, task.steps, lease.attempt)
        return active

    def _restore(self, task: ConceptTask) -> None:
        for name, state in self._context.store.states(task.concept.concept_id):
            try:
                task.restore(state)
                return
            except ValueError as error:
                logger.warning("%s/%s is not continued: %s", task.concept.concept_id, name, error)

    def let_go(self, lost: Iterable[ActiveConcept]) -> None:
        """Drops concepts whose leases were lost while this worker was silent."""
        for active in lost:
            self._slots.remove(active)
            # A later heartbeat may have made it this worker's again: then nobody must wait for it.
            self._give_back(active)

    def fail(self, active: ActiveConcept, error: str) -> None:
        """Ends a concept that can't be learned."""
        with self._context.lease_lock:
            self._drop(active)
            self._report_failure(active.concept_id, error)

    def give_back_later(self, active: ActiveConcept) -> None:
        """Gives a concept back when what it has to write is written. It must have left its slot."""
        self._writer.then(active.concept_id, lambda: self._give_back(active))

    def _give_back(self, active: ActiveConcept) -> None:
        with self._context.lease_lock:
            if self._concepts.remove(active):
                self._scheduler.give_back(self._context.name, active.concept_id)

    def lacks_memory(self, active: ActiveConcept) -> None:
        """Gives up a concept for which there is no memory: see `_lacks_memory`."""
        with self._context.lease_lock:
            self._drop(active)
            self._lacks_memory(active.concept_id)

    def _lacks_memory(self, concept_id: str) -> None:
        """A leased concept that isn't active finds no memory: it fails if it is alone here, else it waits."""
        if self._concepts and self._slots.close_free():
            self._scheduler.give_back(self._context.name, concept_id)
        else:
            self._report_failure(
                concept_id, "out of memory, though it was alone: a smaller batch_size needs less"
            )

    def _report_failure(self, concept_id: str, error: str) -> None:
        with about(concept_id):
            logger.warning("%s failed: %s", concept_id, error)
        self._scheduler.fail(self._context.name, concept_id, error)

    def _drop(self, active: ActiveConcept) -> bool:
        """Forgets a concept. False when it is forgotten already."""
        self._slots.remove(active)
        return self._concepts.remove(active)
