"""`textinv review --import`: decisions of a file into the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import examples
from tests.support.commands import textinv
from textinv_ray.service.reviewing.decide import Request, by_id, decide
from textinv_ray.service.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    examples.finish(store, "a")
    examples.finish(store, "b")
    return store


def entry(concept_id: str, verdict: str = "approved", **more: Any) -> dict[str, Any]:
    fields = {"fingerprint": f"fingerprint of {concept_id}", "verdict": verdict, "decided_at": 10.0}
    return {"concept_id": concept_id, **fields, **more}


def imported(
    store: Store, tmp_path: Path, *decisions: dict[str, Any], kind: str = "textinv decisions"
) -> int:
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps({"kind": kind, "decisions": decisions}))
    return textinv("review", store.uri, "--import", str(path), "--reviewer", "tom")


def test_twice_is_once(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decisions = (entry("a", note="good", reviewer="eva"), entry("b", "rejected"))
    assert imported(store, tmp_path, *decisions) == 0
    assert "2 decisions stored, 0 were there already" in capsys.readouterr().out
    found = by_id(store)
    assert [(one.verdict, one.reviewer, one.note) for one in found.values()] == [
        ("approved", "eva", "good"),
        ("rejected", "tom", ""),
    ]
    assert imported(store, tmp_path, *decisions) == 0
    assert "0 decisions stored, 2 were there already" in capsys.readouterr().out
    assert by_id(store) == found


def test_a_later_decision_stays_in_force(store: Store, tmp_path: Path) -> None:
    decide(store, Request("a", "fingerprint of a", "rejected", "eva", decided_at=20.0))
    assert imported(store, tmp_path, entry("a")) == 0
    found = by_id(store)["a"]
    assert (found.verdict, [one.reviewer for one in found.earlier]) == ("rejected", ["tom"])


def test_others_are_stored_when_one_cannot_be(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decisions = (entry("gone"), entry("../b"), entry("a", fingerprint="an earlier word"), entry("b"))
    assert imported(store, tmp_path, *decisions) == 1
    assert list(by_id(store)) == ["b"]
    error = capsys.readouterr().err
    assert "not stored: gone: gone has no learned word" in error
    assert "the word of a was learned anew" in error
    assert error.count("\n") == 3


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Invalid JSON"),
        ("[]", "is not a file of decisions"),
        ('{"kind": "other", "decisions": []}', "kind: Input should be 'textinv decisions'"),
        (
            json.dumps({"kind": "textinv decisions", "decisions": [entry("a", "great")]}),
            "decision 0, verdict",
        ),
        (
            json.dumps(
                {"kind": "textinv decisions", "decisions": [entry("a"), {**entry("b"), "decided_at": -1}]}
            ),
            "decision 1, decided_at",
        ),
    ],
)
def test_what_is_not_a_file_of_decisions(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, why: str
) -> None:
    path = tmp_path / "decisions.json"
    path.write_text(content)
    assert textinv("review", store.uri, "--import", str(path)) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
    assert by_id(store) == {}


def test_no_file(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("review", store.uri, "--import", str(tmp_path / "none.json")) == 2
    assert "none.json doesn't exist" in capsys.readouterr().err
