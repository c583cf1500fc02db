"""Learning: the steps of the concepts in the pack, and the end of those that a stopping rule ends."""

from __future__ import annotations

import time
from collections.abc import Sequence

from textinv_ray.service import metrics
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.context import WorkerContext
from textinv_ray.service.worker.heartbeat import Heartbeat
from textinv_ray.service.worker.leasing import Leasing
from textinv_ray.service.worker.reviewing import Reviewer
from textinv_ray.service.worker.slots import Slots
from textinv_ray.service.worker.writing import Writer


class Learner:
    """Takes steps. What it returns is done and has left the pack; it is to be finished."""

    def __init__(
        self,
        context: WorkerContext,
        slots: Slots,
        leasing: Leasing,
        reviewer: Reviewer,
        writer: Writer,
        heartbeat: Heartbeat,
    ) -> None:
        self._context = context
        self._slots = slots
        self._leasing = leasing
        self._reviewer = reviewer
        self._writer = writer
        self._heartbeat = heartbeat

    def apply_stopping(self) -> list[ActiveConcept]:
        """With `stopping.rule: clip`, evaluates the words that are due before their next step.

        Returns those that end by it. (`dvar` is part of the pack's step.)
        """
        if self._context.config.stopping.rule != "clip":
            return []
        evaluated = self._evaluate([active for active in self._slots.active if active.task.evaluation_due])
        for active in evaluated:
            active.task.apply_stopping()
            if active.task.done:
                self._slots.remove(active)
        return [active for active in evaluated if active.task.done]

    def step(self) -> list[ActiveConcept]:
        """One step of all concepts in the pack, and the reviews that are due after it. Returns those that are done."""
        if self._slots.is_empty:
            return []
        start = time.monotonic()
        concepts = self._slots.active
        before = [active.task.step for active in concepts]
        leavers = self._slots.step()
        if leavers is None:
            self._make_room()
            return []
        seconds = time.monotonic() - start
        share = seconds / len(concepts)
        moved = [active for active, step in zip(concepts, before, strict=True) if active.task.step != step]
        self._heartbeat.add_steps(len(moved))
        metrics.STEP_SECONDS.observe(seconds)
        metrics.STEPS.add(len(moved))
        metrics.SAMPLES.add(sum(active.task.concept.batch_size for active in moved))
        metrics.WRITE_QUEUE.set(self._writer.pending)
        for active in concepts:
            if active.task.failed:
                self._leasing.fail(active, active.task.failed)
            else:
                active.history.at(active.task.step, share)
        self._review_due([active for active in moved if not active.task.failed and not active.task.done])
        done = [self._context.concepts.of(task) for task in leavers if not task.failed]
        return self._evaluate(done)

    def _review_due(self, concepts: Sequence[ActiveConcept]) -> None:
        """Reviews those for which samples are due at their step: first those without scores."""
        due = [active for active in concepts if active.task.step in active.reviews]
        for scored in (False, True):
            self._reviewer.review(
                [active for active in due if active.reviews[active.task.step] == scored], scored=scored
            )

    def _evaluate(self, concepts: Sequence[ActiveConcept]) -> list[ActiveConcept]:
        """Evaluates the words that are due for the stopping rule. Returns all but those that failed by it."""
        due = [active for active in concepts if active.task.evaluation_due]
        for active, score in self._reviewer.evaluate(due).items():
            active.task.record(score)
            active.history.at(active.task.step).stopping_clip_image_similarity = score
        return [active for active in concepts if not active.task.evaluation_due]

    def _make_room(self) -> None:
        """After a step that ran out of memory, and changed nothing: half of the concepts go on, the others later.

        Those keep what they have learned, in checkpoints, and wait for a free slot of any worker. A concept that was
        alone goes on with checkpointed activations, or is given up when that is done already.
        """
        concepts = self._slots.active
        metrics.MEMORY_SPLITS.add()
        if len(concepts) > 1:
            for active in self._slots.halve():
                self._writer.save([active])
                self._leasing.give_back_later(active)
            self._slots.compile()
        elif not self._slots.save_memory():
            self._leasing.lacks_memory(concepts[0])
