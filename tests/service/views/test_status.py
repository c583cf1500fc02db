"""`textinv status`: by the store alone, whatever state a job was left in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.support import examples
from tests.support.commands import textinv
from tests.support.waiting import wait_for
from textinv_ray.service.driver.lock import Lock, Pace
from textinv_ray.service.store.holder import NAME
from textinv_ray.service.store.job import end
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import status

ROWS = 8
LOST = "its worker gave no sign of life for 60 s (3 of 3 attempts)"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Iterator[Store]:
    """A job of eight concepts that has begun."""
    store = Store(str(tmp_path / "out") if request.param == "local" else "memory://status/out")
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path, ROWS)
    yield store
    fsspec.filesystem("memory").store.clear()


def finish(store: Store, concept_id: str, **changes: Any) -> None:
    examples.finish(store, concept_id, finished_at=time.time(), **changes)


def checkpoint(store: Store, concept_id: str, steps: int, time_ms: int | None = None) -> None:
    history = examples.history(concept_id, steps)
    history.points[-1].time_ms = time_ms if time_ms is not None else int(1000 * time.time())
    store.checkpoint(concept_id, b"state", history.to_bytes())


def as_text(capsys: pytest.CaptureFixture[str], store: Store) -> str:
    assert textinv("status", store.uri) == 0
    return capsys.readouterr().out


def test_a_job_that_waits_for_a_machine(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """As the driver says with each beat of its lock; not once the driver is silent or the job has ended."""
    line = "waiting for 1 GPU: the cluster has 0; the autoscaler says: starting 1 x gpu"
    with Lock(store, print, Pace(beat_s=0.02)) as lock:
        lock.waiting_for = line
        wait_for(lambda: status.read(store.uri).waiting_for == line)
        out = as_text(capsys, store)
        assert f"{line}\n" in out
        assert "killed" not in out
        lock.waiting_for = ""
        wait_for(lambda: status.read(store.uri).waiting_for == "")
        lock.waiting_for = line
        wait_for(lambda: line in str(store.read(NAME)))
        end(store, 1)
        assert status.read(store.uri).waiting_for == ""
    store.write(NAME, b"{torn")
    assert status.read(store.uri).waiting_for == ""


def test_a_job_that_runs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    finish(store, "c0")
    finish(store, "c1")
    checkpoint(store, "c2", 2)
    examples.fail(store, "c3", "image s3://b/c3-1.png: doesn't exist", time=time.time())
    examples.fail(store, "c4", "image s3://b/c4-0.png: doesn't exist", time=time.time())
    examples.fail(store, "c5", LOST, time=time.time(), quarantined=True)
    found = status.read(store.uri)
    assert (found.done, len(found.running), found.failed, found.quarantined, found.waiting) == (2, 1, 2, 1, 2)
    assert found.running[0].concept_id == "c2"
    assert found.running[0].step == 2
    assert found.running[0].loss == pytest.approx(0.5)
    assert found.exit_code is None
    assert found.concepts_per_hour is not None
    assert found.seconds_left == pytest.approx(3600 * 3 / found.concepts_per_hour)
    assert found.worker_seconds_per_concept == 12.5
    assert found.scores["clip_image_similarity"] == 0.75
    assert [(kind.error, kind.concept_ids) for kind in found.errors] == [
        ("image s3://b/c3-1.png: doesn't exist", ("c3", "c4")),
        (LOST, ("c5",)),
    ]
    text = as_text(capsys, store)
    assert "done         2  of 8" in text
    assert "quarantined  1" in text
    assert "2 x image s3://b/c3-1.png: doesn't exist  (c3, c4)" in text
    assert "mean CLIP image similarity: 0.500 -> 0.750" in text
    assert len(text.splitlines()) < 40


def test_means_have_intervals(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(3):
        finish(store, f"c{index}", clip_image_similarity=0.5 + index / 10)
    found = status.read(store.uri)
    low, high = found.intervals["clip_image_similarity"]
    assert 0.5 <= low < 0.6 < high <= 0.7
    assert "retrieval_top1" not in found.scores
    text = as_text(capsys, store)
    assert f"mean CLIP image similarity: 0.500 -> 0.600 [{low:.3f}, {high:.3f}]" in text
    assert "mean judge similarity: 0.400 -> 0.600 [0.600, 0.600]" in text


def test_a_job_that_ended(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(ROWS - 1):
        finish(store, f"c{index}")
    examples.fail(store, "c7", "x", time=time.time())
    end(store, 1)
    found = status.read(store.uri)
    assert (found.done, found.failed, found.waiting, found.exit_code) == (ROWS - 1, 1, 0, 1)
    assert found.seconds_left is None
    assert found.mlflow_is_behind
    text = as_text(capsys, store)
    assert "with exit code 1" in text
    assert f"`textinv track {store.shown}` writes what is missing" in text


def test_a_job_that_was_killed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """What nobody has written to for longer than a lease lasts isn't running."""
    checkpoint(store, "c0", 2)
    running = status.read(store.uri)
    assert [concept.concept_id for concept in running.running] == ["c0"]
    later = time.time() + 3600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(status.time, "time", lambda: later)
        found = status.read(store.uri)
        text = as_text(capsys, store)
    assert found.running == ()
    assert [concept.concept_id for concept in found.interrupted] == ["c0"]
    assert "interrupted  1  the same command goes on from their checkpoints" in text
    assert "not ended, last sign of life 60 min ago: starting, or killed" in text


def test_a_failed_concept_that_is_tried_again(store: Store) -> None:
    examples.fail(store, "c0", "x", time=time.time() - 100)
    checkpoint(store, "c0", 2)
    found = status.read(store.uri)
    assert (found.failed, len(found.running)) == (0, 1)


def test_results_that_are_being_replaced(
    store: Store, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    """Under new settings an old result is something to do, until the new one is there."""
    for index in range(ROWS):
        finish(store, f"c{index}")
    examples.begin(store, examples.config(tiny_sd, tiny_clip, "training.steps=9"), tmp_path, ROWS)
    checkpoint(store, "c1", 2)
    finish(store, "c0")
    found = status.read(store.uri)
    assert (found.done, len(found.running), found.waiting) == (1, 1, ROWS - 2)


def test_what_got_worse(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    finish(store, "c0")
    assert "got worse" not in as_text(capsys, store)
    finish(store, "c1", clip_image_similarity=0.4)
    finish(store, "c2", clip_image_similarity=0.3)
    assert status.read(store.uri).worse_than_initializer == ("c2", "c1")
    assert "results that got worse than their initializer: 2 (c2, c1)" in as_text(capsys, store)


def test_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    finish(store, "c0")
    assert textinv("status", store.uri, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["done"] == 1
    assert found["rows"] == ROWS
    assert found["running"] == []


def test_where_there_is_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("status", str(tmp_path)) == 2
    assert "no job.json there; give the --output of a job" in capsys.readouterr().err
    assert textinv("track", str(tmp_path)) == 2
