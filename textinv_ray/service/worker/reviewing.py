"""Reviewing: samples and scores of a worker's concepts, and what the stopping rule goes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from textinv_ray.inversion.pack import is_out_of_memory
from textinv_ray.inversion.review import Review, Subject
from textinv_ray.service import metrics
from textinv_ray.service.store.history import History
from textinv_ray.service.worker import artifacts
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.context import WorkerContext
from textinv_ray.service.worker.heartbeat import Heartbeat
from textinv_ray.service.worker.writing import Writer

Found = TypeVar("Found")
Fail = Callable[[ActiveConcept, str], None]


class Reviewer:
    """Renders several concepts together. A concept that can't be rendered fails and is missing in what is returned."""

    def __init__(self, context: WorkerContext, writer: Writer, heartbeat: Heartbeat, fail: Fail) -> None:
        """`fail`: called with a concept that can't be rendered, and the error."""
        self._engine = context.engine
        self._writer = writer
        self._heartbeat = heartbeat
        self._fail = fail

    def review_initializers(self, concepts: Sequence[ActiveConcept]) -> dict[ActiveConcept, Review]:
        """Samples and scores at step 0: of what each concept started from, whatever its step is now."""
        subjects = [Subject(active.task.concept, active.task.start) for active in concepts]
        reviews = self._review(concepts, subjects, scored=True)
        for active, found in reviews.items():
            self._keep(active, 0, found)
        return reviews

    def review(
        self, concepts: Sequence[ActiveConcept], *, scored: bool = True
    ) -> dict[ActiveConcept, Review]:
        """Samples, and scores if `scored`, of each word as it is now. They go into the history and the store."""
        subjects = [Subject(active.task.concept, active.task.vectors) for active in concepts]
        reviews = self._review(concepts, subjects, scored=scored)
        for active, found in reviews.items():
            self._keep(active, -1, found)
        return reviews

    def evaluate(self, concepts: Sequence[ActiveConcept]) -> dict[ActiveConcept, float]:
        """What `stopping.rule: clip` goes by, for each word as it is now."""
        subjects = [Subject(active.task.concept, active.task.vectors) for active in concepts]
        render = partial(self._engine.evaluate, each_batch=self._heartbeat.tick)
        return self._render(concepts, subjects, render, History.add_stopping, metrics.LOOK_SECONDS)

    def _review(
        self, concepts: Sequence[ActiveConcept], subjects: Sequence[Subject], *, scored: bool
    ) -> dict[ActiveConcept, Review]:
        render = partial(self._engine.review, scored=scored, each_batch=self._heartbeat.tick)
        return self._render(concepts, subjects, render, History.add_review, metrics.REVIEW_SECONDS)

    def _keep(self, active: ActiveConcept, place: int, found: Review) -> None:
        """Notes a review at a point of the history, and writes its samples."""
        point = active.history.points[place]
        artifacts.review(point, found)
        self._writer.samples(active, point.step, found.samples)

    def _render(
        self,
        concepts: Sequence[ActiveConcept],
        subjects: Sequence[Subject],
        render: Callable[[Sequence[Subject]], Sequence[Found]],
        add_seconds: Callable[[History, float], None],
        histogram: metrics.Histogram,
    ) -> dict[ActiveConcept, Found]:
        """What `render` makes of each concept's subject: of all together, or one by one when that goes wrong."""
        if not concepts:
            return {}
        start = time.monotonic()
        try:
            found = render(subjects)
        except (ValueError, RuntimeError, MemoryError) as error:
            if not isinstance(error, ValueError) and not is_out_of_memory(error):
                raise
            if len(concepts) == 1:
                self._fail(concepts[0], str(error))
                return {}
            if not isinstance(error, ValueError):
                metrics.MEMORY_SPLITS.add()
            apart = [
                self._render([active], [subject], render, add_seconds, histogram)
                for active, subject in zip(concepts, subjects, strict=True)
            ]
            return {active: one for some in apart for active, one in some.items()}
        seconds = time.monotonic() - start
        histogram.observe(seconds)
        share = seconds / len(concepts)
        for active in concepts:
            add_seconds(active.history, share)
        return dict(zip(concepts, found, strict=True))
