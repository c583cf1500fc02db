"""What the page of `textinv review` shows: every concept in short, one concept in full, decisions as they are made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from textinv_ray.service.reviewing import decide
from textinv_ray.service.reviewing.flags import flags, mean_norm
from textinv_ray.service.store.history import History
from textinv_ray.service.store.places import is_concept_id
from textinv_ray.service.store.records import Decision, Failure, Opinion, Result
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table

_CURVE_POINTS = 200
_FRESH_S = 3.0
"""Decisions of other servers on the same store are looked for at most this often."""


class Shown(BaseModel):
    """A part of an answer to the page, as JSON."""

    model_config = ConfigDict(frozen=True)


class Judged(Shown):
    """A decision on the word as it is now."""

    verdict: str
    reviewer: str
    decided_at: float
    note: str

    @classmethod
    def of(cls, opinion: Opinion) -> Judged:
        """What the page shows of an opinion."""
        return cls(
            verdict=opinion.verdict,
            reviewer=opinion.reviewer,
            decided_at=opinion.decided_at,
            note=opinion.note,
        )


class Warned(Shown):
    """See flags.Flag."""

    kind: str
    text: str


class Summary(Shown):
    """A concept in the list."""

    id: str
    status: str
    """`done` or `failed`."""
    error: str = ""
    token: str = ""
    initializer: str = ""
    property: str = ""
    tags: dict[str, str] = {}
    image: float | None = None
    """CLIP image similarity."""
    image_before: float | None = None
    gain: float | None = None
    text: float | None = None
    text_before: float | None = None
    steps: int = 0
    stopped: str = ""
    best_step: int | None = None
    norm: float = 0.0
    vectors: int = 0
    nearest: str = ""
    nearest_cosine: float | None = None
    nearest_words: str = ""
    warnings: tuple[Warned, ...] = ()
    fingerprint: str = ""
    training: int = 0
    """Training images."""
    looks: tuple[int, ...] = ()
    """Steps that have samples."""
    prompts: tuple[str, ...] = ()
    per_prompt: int = 0
    decision: Judged | None = None


class Point(Shown):
    """A point of a concept's curves."""

    step: int
    image: float | None
    text: float | None
    rule: float | None
    """What `stopping.rule: clip` measured."""
    loss: float | None


class Detail(Shown):
    """What the page loads of the concept that is looked at."""

    points: tuple[Point, ...]
    """All that have a score, and about 200 of the others."""
    opinions: tuple[Judged, ...]
    """On this word, the oldest first."""
    earlier_words: tuple[Judged, ...]
    """On words that were learned before it."""


class Gallery:
    """An output as reviewers see it. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        """Reads all results. Raises StoreError."""
        self.store = store
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._times: dict[str, float] = {}
        self.read()

    def read(self) -> None:
        """Reads the store anew: results of a job that runs, decisions of others. Raises StoreError."""
        stored, near = StoredResults.read(self.store), results_table.nearest(self.store)
        times = self.store.times("reviews")
        decisions = decide.by_id(self.store)
        warnings = flags(stored.results, near)
        summaries = [_failed(failure) for failure in stored.without_result]
        for result in stored.results:
            of_word = tuple(
                Warned(kind=flag.kind, text=flag.text) for flag in warnings.get(result.concept_id, ())
            )
            summaries.append(_done(result, near.get(result.concept_id), of_word))
        with self._lock:
            self._results = {result.concept_id: result for result in stored.results}
            self._summaries = {summary.id: summary for summary in summaries}
            self._decisions, self._times, self._looked_at = decisions, times, time.monotonic()

    def result(self, concept_id: str) -> Result | None:
        """A concept's result, as last read."""
        return self._results.get(concept_id)

    def summaries(self) -> list[Summary]:
        """All concepts, with decisions: failed ones, then the others by concept_id."""
        with self._lock:
            return [
                summary.model_copy(update={"decision": self._judged(summary.id)})
                for summary in self._summaries.values()
            ]

    def detail(self, concept_id: str) -> Detail | None:
        """One concept; none when it has no result."""
        result = self.result(concept_id)
        if result is None:
            return None
        data = self.store.read_concept(concept_id, "history.parquet")
        try:
            history = History.from_bytes(data) if data else None
        except ValueError:
            history = None
        decision = self._decisions.get(concept_id)
        opinions = [*decision.earlier, decision] if decision else []
        return Detail(
            points=tuple(_points(history)) if history else (),
            opinions=tuple(Judged.of(one) for one in opinions if one.fingerprint == result.fingerprint),
            earlier_words=tuple(Judged.of(one) for one in opinions if one.fingerprint != result.fingerprint),
        )

    def note(self, decision: Decision) -> None:
        """Takes a decision that was just written into account."""
        with self._lock:
            self._decisions[decision.concept_id] = decision

    def decisions(self) -> dict[str, Judged]:
        """Decisions on words as they are now, with those that other servers have written to the store meanwhile."""
        with self._lock:
            is_due = time.monotonic() - self._looked_at > _FRESH_S
            if is_due:
                self._looked_at = time.monotonic()
            known = dict(self._times)
        if is_due:
            times = self.store.times("reviews")
            changed = [
                name for name, when in times.items() if known.get(name) != when and name.endswith(".json")
            ]
            ids = [name.removesuffix(".json") for name in changed]
            # Programs that copy and edit files leave others here, under names that are no ids
            found = [one for id_ in ids if is_concept_id(id_) and (one := self.store.decision(id_))]
            with self._lock:
                self._times = times
                self._decisions.update({decision.concept_id: decision for decision in found})
        with self._lock:
            judged = {concept_id: self._judged(concept_id) for concept_id in self._decisions}
        return {concept_id: one for concept_id, one in judged.items() if one is not None}

    def _judged(self, concept_id: str) -> Judged | None:
        decision, result = self._decisions.get(concept_id), self._results.get(concept_id)
        if decision is None or result is None or decision.fingerprint != result.fingerprint:
            return None
        return Judged.of(decision)


def _failed(failure: Failure) -> Summary:
    return Summary(id=failure.concept_id, status="failed", error=failure.error)


def _done(result: Result, near: tuple[str, float] | None, warnings: tuple[Warned, ...]) -> Summary:
    return Summary(
        id=result.concept_id,
        status="done",
        token=result.placeholder_token,
        initializer=result.initializer_token,
        property=result.learnable_property,
        tags=result.tags,
        image=result.clip_image_similarity,
        image_before=result.clip_image_similarity_initializer,
        gain=result.clip_image_similarity_gain,
        text=result.clip_text_similarity,
        text_before=result.clip_text_similarity_initializer,
        steps=result.steps,
        stopped=result.stopped,
        best_step=result.best_step,
        norm=mean_norm(result),
        vectors=result.num_vectors,
        nearest=near[0] if near else "",
        nearest_cosine=near[1] if near else None,
        nearest_words=result.nearest_text,
        warnings=warnings,
        fingerprint=result.fingerprint,
        training=result.images,
        looks=result.sample_steps,
        prompts=result.sample_prompts,
        per_prompt=result.images_per_prompt,
    )


def _points(history: History) -> Iterable[Point]:
    every = max(1, len(history.points) // _CURVE_POINTS)
    for index, point in enumerate(history.points):
        scores = (
            point.clip_image_similarity,
            point.clip_text_similarity,
            point.stopping_clip_image_similarity,
        )
        has_score = any(score is not None for score in scores)
        if has_score or index % every == 0:
            yield Point(
                step=point.step,
                image=point.clip_image_similarity,
                text=point.clip_text_similarity,
                rule=point.stopping_clip_image_similarity,
                loss=point.loss,
            )
