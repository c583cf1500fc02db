"""Decisions about words in the store: made, read, and which words are approved."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from textinv_ray.service.store.records import Decision, Opinion, Result, Verdict
from textinv_ray.service.store.store import Store

MAX_REVIEWER, MAX_NOTE = 100, 4000
"""Characters."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class DecisionError(ValueError):
    """A decision that must not be stored. The message says why."""


class AnotherWordError(DecisionError):
    """The decision is about a word that the store doesn't have, or no longer has."""


class DecidedMeanwhileError(DecisionError):
    """Somebody else has decided since the reviewer's page read the store."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.reviewer} has decided meanwhile: {decision.verdict}")
        self.decision = decision


@dataclass(frozen=True)
class Request:
    """A decision that a reviewer wants to be stored."""

    concept_id: str
    fingerprint: str
    """Of the result that the reviewer saw."""
    verdict: Verdict
    reviewer: str
    note: str = ""
    decided_at: float | None = None
    """None: now."""


def decide(store: Store, request: Request, seen: float | None = None, *, careful: bool = True) -> Decision:
    """Stores a decision; what was decided before is kept in `earlier`. Returns what the store has then.

    A decision that is in the store already is not stored again.
    seen: `decided_at` of the decision on this word that the reviewer saw; None: none.
    careful: whether another reviewer's decision that wasn't seen is respected.
    Raises DecidedMeanwhileError, AnotherWordError when the store's word isn't the one of the request, DecisionError for
    a reviewer or a note that can't be stored, and StoreError.
    """
    reviewer = _clean("the reviewer's name", request.reviewer.strip(), MAX_REVIEWER)
    note = _clean("the note", request.note.strip(), MAX_NOTE)
    if not reviewer:
        raise DecisionError("a decision needs the reviewer's name")
    try:
        result = store.result(request.concept_id)
    except ValueError as error:  # an id that can't name a folder
        raise AnotherWordError(str(error)) from None
    if result is None:
        raise AnotherWordError(f"{request.concept_id} has no learned word")
    if result.fingerprint != request.fingerprint:
        raise AnotherWordError(f"the word of {request.concept_id} was learned anew; look at it again")
    before = store.decision(request.concept_id)
    if careful and before is not None and before.fingerprint == result.fingerprint:
        is_new = seen is None or abs(before.decided_at - seen) > 1e-3
        if is_new and before.reviewer != reviewer and before.verdict != "undecided":
            raise DecidedMeanwhileError(before)
    when = time.time() if request.decided_at is None else request.decided_at
    if request.decided_at is None and before is not None and before.fingerprint == result.fingerprint:
        # The clock of whoever decided before may be ahead, and what is decided now is the last word
        when = max(when, before.decided_at + 0.001)
    opinion = Opinion(
        verdict=request.verdict,
        fingerprint=request.fingerprint,
        reviewer=reviewer,
        decided_at=when,
        note=note,
    )
    made = _with(before, request.concept_id, opinion)
    if before is None or made != before:
        store.write_decision(made)
    return made


def _with(before: Decision | None, concept_id: str, opinion: Opinion) -> Decision:
    """A decision with one more opinion: by time, so that an imported one of yesterday doesn't undo today's.

    Opinions on words that were learned before come first, whatever their clocks said.
    """
    known = [] if before is None else [*before.earlier, _opinion(before)]
    if opinion not in known:
        known.append(opinion)
    known.sort(key=lambda one: (one.fingerprint == opinion.fingerprint, one.decided_at))
    *earlier, last = known
    return Decision(concept_id=concept_id, earlier=tuple(earlier), **dict(last))


def _opinion(decision: Decision) -> Opinion:
    return Opinion(**{name: getattr(decision, name) for name in Opinion.model_fields})


def verdicts(results: Iterable[Result], decisions: Mapping[str, Decision]) -> dict[str, Verdict]:
    """concept_id -> verdict of each result that the store has a decision on, taken back or not."""
    return {
        result.concept_id: found.verdict
        for result in results
        if (found := decisions.get(result.concept_id)) and found.fingerprint == result.fingerprint
    }


def by_id(store: Store) -> dict[str, Decision]:
    """All decisions of a store."""
    return {decision.concept_id: decision for decision in store.decisions()}


def _clean(what: str, text: str, limit: int) -> str:
    """Raises DecisionError for a text that is too long, or that has characters which aren't text."""
    if len(text) > limit:
        raise DecisionError(f"{what} has {len(text)} characters; at most {limit} are stored")
    if _CONTROL.search(text):
        raise DecisionError(f"{what} has control characters")
    return text
