"""Decisions in the store: of a word that was seen, by whom and when, and none of them lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import fsspec
import pytest

from tests.support import examples
from textinv_ray.service.reviewing.decide import (
    MAX_NOTE,
    AnotherWordError,
    DecidedMeanwhileError,
    DecisionError,
    Request,
    by_id,
    decide,
    verdicts,
)
from textinv_ray.service.store.records import Verdict
from textinv_ray.service.store.store import Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: object) -> Iterator[Store]:
    store = Store(str(tmp_path) if request.param == "local" else "memory://decide/out")
    examples.finish(store, "a")
    examples.finish(store, "b")
    yield store
    fsspec.filesystem("memory").store.clear()


def wish(
    concept_id: str = "a",
    verdict: Verdict = "approved",
    reviewer: str = "eva",
    at: float = 10.0,
    note: str = "",
) -> Request:
    return Request(concept_id, f"fingerprint of {concept_id}", verdict, reviewer, note, at)


def test_who_when_and_what(store: Store) -> None:
    made = decide(store, wish(note="the ears "))
    assert json.loads(store.read("reviews/a.json") or b"") == {
        "concept_id": "a",
        "verdict": "approved",
        "fingerprint": "fingerprint of a",
        "reviewer": "eva",
        "decided_at": 10.0,
        "note": "the ears",
        "earlier": [],
    }
    assert by_id(store) == {"a": made}
    assert verdicts(store.results(), by_id(store)) == {"a": "approved"}


def test_what_is_decided_now_is_the_last_word_whatever_other_clocks_said(store: Store) -> None:
    ahead = time.time() + 3600
    decide(store, wish(at=ahead, reviewer="tom"))
    now = Request("a", "fingerprint of a", "rejected", "eva", "")
    made = decide(store, now, careful=False)
    assert (made.verdict, made.reviewer) == ("rejected", "eva")
    assert by_id(store)["a"].verdict == "rejected"
    assert [one.verdict for one in made.earlier] == ["approved"]


def test_what_was_said_before_is_kept(store: Store) -> None:
    first = decide(store, wish())
    decide(store, wish(verdict="undecided", at=11.0), first.decided_at)
    last = decide(store, wish(verdict="rejected", reviewer="tom", at=12.0), 11.0)
    assert [(one.verdict, one.reviewer) for one in last.earlier] == [
        ("approved", "eva"),
        ("undecided", "eva"),
    ]
    assert verdicts(store.results(), by_id(store)) == {"a": "rejected"}


def test_a_word_that_was_learned_anew_is_undecided(store: Store) -> None:
    decide(store, wish())
    examples.finish(store, "a", fingerprint="another")
    assert verdicts(store.results(), by_id(store)) == {}
    (result, _) = store.results()
    assert by_id(store)["a"].verdict_on(result) == "undecided"
    with pytest.raises(AnotherWordError, match="learned anew"):
        decide(store, wish(at=12.0))
    again = decide(store, Request("a", "another", "rejected", "tom", decided_at=5.0))
    assert (again.verdict, len(again.earlier)) == ("rejected", 1), "whatever the clocks said"


def test_another_reviewer_was_faster(store: Store) -> None:
    decide(store, wish(reviewer="tom"))
    with pytest.raises(DecidedMeanwhileError, match="tom has decided meanwhile: approved"):
        decide(store, wish(verdict="rejected", at=11.0), None)
    decide(store, wish(verdict="rejected", at=12.0), 10.0)
    decide(store, wish(verdict="approved", at=13.0), None)
    assert by_id(store)["a"].verdict == "approved", "of one reviewer in two windows the last decision counts"


def test_the_later_decision_counts_whenever_it_comes(store: Store) -> None:
    """Imported ones come late."""
    decide(store, wish(at=20.0))
    found = decide(store, wish(verdict="rejected", reviewer="tom", at=15.0), careful=False)
    assert (found.verdict, [one.reviewer for one in found.earlier]) == ("approved", ["tom"])
    assert decide(store, wish(verdict="rejected", reviewer="tom", at=15.0), careful=False) == found, "once"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (wish("c"), "c has no learned word"),
        (wish("../a"), "can't name a folder"),
        (wish(reviewer=" "), "needs the reviewer's name"),
        (wish(reviewer="x" * 101), "101 characters"),
        (wish(reviewer="a\x1bb"), "control characters"),
        (wish(note="x" * (MAX_NOTE + 1)), "characters; at most 4000"),
    ],
)
def test_what_is_not_stored(store: Store, request_: Request, why: str) -> None:
    with pytest.raises(DecisionError, match=why):
        decide(store, request_)
    assert by_id(store) == {}


def test_a_damaged_file_counts_as_absent(store: Store) -> None:
    store.write("reviews/a.json", b"{")
    store.write("reviews/notes.txt", b"mine")
    decide(store, wish("b"))
    assert list(by_id(store)) == ["b"]
