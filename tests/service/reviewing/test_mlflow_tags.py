"""Decisions as tags in MLflow: written as they are made, taken back, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import examples
from tests.support.mlflow import Database, write_view
from textinv_ray.service.reviewing.decide import Request, decide
from textinv_ray.service.reviewing.mlflow_tags import DecisionTags
from textinv_ray.service.store.records import Verdict
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.concept_runs import ConceptRuns
from textinv_ray.service.tracking.decision_tags import APPROVED, NOTE, REVIEWER
from textinv_ray.util.errors import UserError


@pytest.fixture
def store(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    examples.finish(store, "a")
    return store


@pytest.fixture
def database(store: Store, tmp_path: Path, empty_database: Path) -> Database:
    database = Database(empty_database, tmp_path / "mlflow")
    write_view(store, database)
    return database


def tags_after(store: Store, database: Database, *verdicts: tuple[Verdict, str]) -> dict[str, str]:
    def never(text: str) -> None:
        raise AssertionError(text)

    written = DecisionTags(lambda: ConceptRuns(store, database.uri, "textinv"), never)
    for verdict, note in verdicts:
        written.note(decide(store, Request("a", "fingerprint of a", verdict, "eva", note), careful=False))
    assert written.finish(60) == 0
    tags = database.content()["a"]["tags"]
    return {name: tags[name] for name in (APPROVED, REVIEWER, NOTE) if name in tags}


def test_as_they_are_made(store: Store, database: Database) -> None:
    assert tags_after(store, database, ("rejected", "no arms"), ("approved", "")) == {
        APPROVED: "true",
        REVIEWER: "eva",
    }
    assert ConceptRuns(store, database.uri, "textinv").approved() == ["a"]
    assert tags_after(store, database, ("undecided", "")) == {}


def test_written_by_track_when_mlflow_was_away(
    store: Store, database: Database, empty_database: Path, tmp_path: Path
) -> None:
    decide(store, Request("a", "fingerprint of a", "approved", "eva", "good"))
    write_view(store, database)
    fresh = Database(empty_database, tmp_path / "fresh")
    write_view(store, fresh)
    assert fresh.content()["a"]["tags"] == database.content()["a"]["tags"]
    assert database.content()["a"]["tags"][APPROVED] == "true"


def test_a_word_that_was_learned_anew(store: Store, database: Database) -> None:
    decide(store, Request("a", "fingerprint of a", "approved", "eva"))
    examples.finish(store, "a", fingerprint="another")
    write_view(store, database)
    assert APPROVED not in database.content()["a"]["tags"]


def test_mlflow_is_away(store: Store) -> None:
    said: list[str] = []

    def away() -> ConceptRuns:
        raise UserError("MLflow at http://x can't be read: refused")

    tags = DecisionTags(away, said.append)
    decision = decide(store, Request("a", "fingerprint of a", "approved", "eva"))
    tags.note(decision)
    tags.note(decision)
    assert tags.finish(20) == 2
    assert said == [
        "not written to MLflow, the store has all decisions: MLflow at http://x can't be read: refused"
    ]
