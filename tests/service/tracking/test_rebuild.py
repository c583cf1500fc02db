"""MLflow away, in the ways it goes away, and `textinv track`: the view is whole in the end, and single."""

from __future__ import annotations

import resource
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support import examples
from tests.support.commands import textinv
from tests.support.mlflow import Database, Server, single
from tests.support.waiting import wait_for
from textinv_ray.service.store.job import end, is_behind
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.background import MirrorThread
from textinv_ray.service.tracking.mirror import MLflowMirror, run_keys
from textinv_ray.service.views import results_table

IDS = ("a", "b")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


@pytest.fixture
def store(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Store:
    """A job's, with two results, a failure and a concept that is being learned."""
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path, 4)
    for concept_id in IDS:
        examples.finish(store, concept_id)
    examples.fail(store, "c", "x", time=5.0)
    return store


@pytest.fixture
def expected(store: Store, empty_database: Path, tmp_path: Path) -> dict[str, Any]:
    """The view of an MLflow that was never away."""
    database = Database(empty_database, tmp_path / "expected")
    mirror, _ = start(store, database.uri)
    mirror.note(IDS)
    assert mirror.finish(5)
    return database.content()


def start(store: Store, uri: str) -> tuple[MirrorThread, list[str]]:
    said: list[str] = []
    keys = run_keys(StoredResults.read(store))
    return MirrorThread(MLflowMirror(store, uri, "textinv"), keys, said.append, retry_s=(0.1, 0.5)), said


def test_a_locked_database(
    store: Store, empty_database: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    database = Database(empty_database, tmp_path / "locked")
    lock = sqlite3.connect(tmp_path / "locked" / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    mirror, said = start(store, database.uri + "?timeout=0.2")
    mirror.note(IDS)
    wait_for(lambda: said)
    lock.execute("ROLLBACK")
    lock.close()
    assert mirror.finish(60)
    assert (
        "can't be written to for now, the job goes on: (sqlite3.OperationalError) database is locked"
        in said[0]
    )
    assert said[1:] == ["MLflow is back; its view catches up"]
    assert database.content() == expected


def test_a_disk_that_is_full(
    store: Store, empty_database: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """No file may grow beyond what the database has: as a full disk, for SQLite."""
    database = Database(empty_database, tmp_path / "full")
    size = (tmp_path / "full" / "mlflow.db").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for concept_id in (f"d{index}" for index in range(3)):
        examples.finish(store, concept_id, steps=2000, sample_steps=[0, 2000])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        mirror, said = start(store, database.uri)
        wait_for(lambda: said)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert mirror.finish(60)
    assert "the job goes on" in said[0]
    assert said[1:] == ["MLflow is back; its view catches up"]
    found = database.content()
    assert {name: run for name, run in found.items() if name in expected and name != "out"} == {
        name: run for name, run in expected.items() if name != "out"
    }
    assert len(found["d2"]["metrics"]["loss"]) == 200


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back(store: Store, server: Server, expected: dict[str, Any]) -> None:
    """Killed after the first concept, refused connections meanwhile, then there again."""
    mirror, said = start(store, server.uri)
    mirror.note(["a"])
    wait_for(lambda: "a" in {run.info.run_name for run in server.view.runs()})
    server.stop()
    mirror.note(IDS)
    wait_for(lambda: said)
    server.start()
    assert mirror.finish(60)
    assert len(said) == 2
    assert said[1] == "MLflow is back; its view catches up"
    assert single(server.view.content()) == single(expected)


@pytest.mark.slow
def test_a_server_with_errors(store: Store, server: Server, expected: dict[str, Any]) -> None:
    """Its database is locked, so it answers with status 500."""
    lock = sqlite3.connect(server.path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    mirror, said = start(store, server.uri)
    wait_for(lambda: said, 120)
    lock.execute("ROLLBACK")
    lock.close()
    assert mirror.finish(60)
    assert "the job goes on" in said[0]
    assert server.view.content() == expected


@pytest.mark.slow
def test_a_server_that_never_was_there_is_caught_up_by_track(
    store: Store, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Down for all of a run, then `textinv track`: the view of a database that was there all the time."""
    server.stop()
    mirror, said = start(store, server.uri)
    mirror.note(IDS)
    assert not mirror.finish(0.5)
    assert len(said) == 1
    assert textinv("track", store.uri, "--tracking-uri", server.uri) == 2
    assert f"MLflow at {server.uri} can't be written to" in capsys.readouterr().err

    results_table.write(store, StoredResults.read(store))
    end(store, 1)
    store.checkpoint("e", b"state", examples.history("e").to_bytes())
    server.start()
    assert textinv("track", store.uri, "--tracking-uri", server.uri) == 0, capsys.readouterr()
    assert "4 concepts to write" in capsys.readouterr().out
    found = server.view.content()
    assert sorted(found) == ["a", "b", "c", "e", "out"]
    assert found["e"]["status"] == "RUNNING"
    assert found["out"]["status"] == "FAILED"
    assert "results.parquet" in found["out"]["files"]
    assert textinv("track", store.uri, "--tracking-uri", server.uri) == 0
    assert server.view.content() == found


def test_track_into_the_default_database(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice: nothing is doubled, and a job that runs stays one that runs."""
    assert textinv("track", store.uri) == 0
    database = Database.at(f"sqlite:///{store.root}/mlflow.db")
    found = database.content()
    assert sorted(found) == ["a", "b", "c", "out"]
    assert found["out"]["status"] == "RUNNING"
    assert found["out"]["metrics"]["concepts_done"][0][1] == 2
    capsys.readouterr()
    assert textinv("track", store.uri) == 0
    assert "0 concepts to write" in capsys.readouterr().out
    assert database.content() == found
    end(store, 1)
    assert is_behind(store)
    assert textinv("track", store.uri) == 0
    assert not is_behind(store)
    assert database.content()["out"]["status"] == "FAILED"
