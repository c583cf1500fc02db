"""What `export --approved` takes: decisions of the store, and tags in MLflow where it has none."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.commands import textinv
from tests.support.mlflow import Database, write_view
from textinv_ray.service.reviewing.approvals import approved
from textinv_ray.service.reviewing.decide import Request, decide
from textinv_ray.service.store.records import Verdict
from textinv_ray.service.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    for concept_id in ("a", "b", "c"):
        examples.finish(store, concept_id)
    return store


def say(store: Store, concept_id: str, verdict: Verdict) -> None:
    decide(store, Request(concept_id, f"fingerprint of {concept_id}", verdict, "eva"))


def never() -> Collection[str]:
    raise AssertionError("MLflow isn't needed")


def test_all_decided_in_the_store(store: Store) -> None:
    say(store, "a", "approved")
    say(store, "b", "rejected")
    say(store, "c", "undecided")
    assert approved(store, never) == ["a"]


def test_tags_count_where_the_store_says_nothing(store: Store) -> None:
    say(store, "a", "rejected")
    say(store, "b", "undecided")
    assert approved(store, lambda: ["a", "b", "c"]) == ["c"]
    examples.finish(store, "a", fingerprint="another")
    assert approved(store, lambda: ["a"]) == ["a"], "a decision on another word says nothing"


def test_export_needs_no_mlflow(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    say(store, "b", "approved")
    command = ["export", store.uri, "--format", "a1111", "--approved", "--output", str(tmp_path / "words")]
    assert textinv(*command) == 0
    assert "1 word in" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == ["ti-b.safetensors", "words.csv"]
    assert not (tmp_path / "out" / "mlflow.db").exists()


def test_export_reads_tags_set_by_hand(
    store: Store, tmp_path: Path, empty_database: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    from mlflow import MlflowClient

    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    database = Database(empty_database, tmp_path / "mlflow")
    write_view(store, database)
    client = MlflowClient(database.uri)
    for run in database.runs():
        if run.info.run_name in ("a", "c"):
            client.set_tag(run.info.run_id, "approved", "True ")
    say(store, "a", "rejected")
    command = ["export", store.uri, "--format", "a1111", "--approved", "--output", str(tmp_path / "words")]
    assert textinv(*command, "--tracking-uri", database.uri) == 0
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == ["ti-c.safetensors", "words.csv"]


def test_a_tag_of_the_manifest_approves_nothing(
    store: Store, tmp_path: Path, empty_database: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    examples.finish(store, "a", tags={"approved": "true"})
    database = Database(empty_database, tmp_path / "mlflow")
    write_view(store, database)
    command = ["export", store.uri, "--format", "a1111", "--approved", "--output", str(tmp_path / "words")]
    assert textinv(*command, "--tracking-uri", database.uri) == 2
