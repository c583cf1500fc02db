"""The thread that writes to MLflow: whatever MLflow does, the job goes on, hears of it once, and all is caught up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_for
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.tracking.background import MirrorThread


class Mirror:
    """An MLflowMirror that fails or takes time when told to."""

    def __init__(self) -> None:
        self.away = False
        self.slow = 0.0
        self.refusals = 0
        self.answers = 0
        self.refused: dict[str, str] = {}
        self.updated: list[str] = []
        self.ended: list[str] = []

    def open(self) -> None:
        if "" in self.refused:
            raise ValueError(self.refused[""])
        self.update("")

    def missing(self, keys: Mapping[str, str]) -> list[str]:
        return list(keys)

    def update(self, concept_id: str) -> str:
        time.sleep(self.slow)
        if self.away:
            self.refusals += 1
            raise ConnectionError("refused by https://me:secret@host/")
        self.answers += 1
        if concept_id:
            self.updated.append(concept_id)
        return self.refused.get(concept_id, "")

    def close(self, status: str, stored: StoredResults, artifacts: Iterable[Path]) -> None:
        self.update("")
        self.ended.append(status)


def start(mirror: Mirror, said: list[str], keys: Mapping[str, str] | None = None) -> MirrorThread:
    made: Any = mirror
    return MirrorThread(made, keys or {}, said.append, retry_s=(0.02, 0.05))


def close(thread: MirrorThread, patience_s: float = 5.0, limit_s: float = 60.0) -> bool:
    return thread.close("FINISHED", StoredResults(), [], patience_s=patience_s, limit_s=limit_s)


def test_all_that_is_noted_is_written() -> None:
    mirror, said = Mirror(), list[str]()
    thread = start(mirror, said, {"old": "key"})
    thread.note(["a", "b"])
    assert close(thread)
    assert sorted(mirror.updated) == ["a", "b", "old"]
    assert mirror.ended == ["FINISHED"]
    assert said == []


def test_away_for_a_while() -> None:
    mirror, said = Mirror(), list[str]()
    mirror.away = True
    thread = start(mirror, said)
    thread.note(["a"])
    wait_for(lambda: mirror.refusals > 2)
    mirror.away = False
    assert close(thread)
    assert mirror.updated == ["a"]
    assert said == [
        "MLflow can't be written to for now, the job goes on: refused by https://host/",
        "MLflow is back; its view catches up",
    ]


def test_away_for_good() -> None:
    mirror, said = Mirror(), list[str]()
    mirror.away = True
    thread = start(mirror, said)
    thread.note(["a"])
    began = time.monotonic()
    assert not close(thread, patience_s=0.3)
    assert time.monotonic() - began < 3
    assert len(said) == 1
    mirror.away = False
    wait_for(lambda: "mlflow" not in {thread.name for thread in threading.enumerate()})
    assert mirror.updated == mirror.ended == [], "who gave up doesn't write beside the one who catches up"


def test_another_process_takes_over() -> None:
    mirror, said = Mirror(), list[str]()
    thread = start(mirror, said)
    wait_for(lambda: mirror.answers)
    thread.give_up()
    thread.note(["a"])
    wait_for(lambda: "mlflow" not in {thread.name for thread in threading.enumerate()})
    assert mirror.updated == mirror.ended == []


def test_away_at_the_very_end() -> None:
    mirror, said = Mirror(), list[str]()
    thread = start(mirror, said)
    thread.note(["a"])
    wait_for(lambda: mirror.updated == ["a"])
    mirror.away = True
    assert not close(thread), "the job's run has not ended in MLflow"


def test_slow_is_not_away() -> None:
    mirror, said = Mirror(), list[str]()
    thread = start(mirror, said)
    mirror.slow = 0.1
    thread.note([f"c{index}" for index in range(8)])
    assert close(thread, patience_s=0.2), "while it makes progress, it is waited for"
    assert len(mirror.updated) == 8


def test_no_time_left() -> None:
    mirror, said = Mirror(), list[str]()
    thread = start(mirror, said)
    mirror.slow = 0.2
    thread.note([f"c{index}" for index in range(20)])
    began = time.monotonic()
    assert not close(thread, patience_s=30, limit_s=0.3)
    assert time.monotonic() - began < 2


def test_an_mlflow_that_hangs_is_away() -> None:
    """Its first call hasn't even failed: it is waited for as long as for one that refuses, and no longer."""
    mirror, said = Mirror(), list[str]()
    mirror.slow = 4.0
    thread = start(mirror, said)
    began = time.monotonic()
    assert not close(thread, patience_s=0.3)
    assert time.monotonic() - began < 2


def test_a_refused_concept_stops_nothing() -> None:
    """It is written once, said once, and the job's run ends."""
    mirror, said = Mirror(), list[str]()
    mirror.refused = {"b": "no such tag", "c": "no such tag"}
    thread = start(mirror, said)
    thread.note(["a", "b", "c", "d"])
    assert close(thread)
    assert sorted(mirror.updated) == ["a", "b", "c", "d"]
    assert mirror.ended == ["FINISHED"]
    assert said == [
        "MLflow refuses a part of b: no such tag",
        "MLflow refuses a part of 2 concepts; job.log says which",
    ]


def test_an_mlflow_that_can_never_be_used() -> None:
    mirror, said = Mirror(), list[str]()
    mirror.refused = {"": "it isn't a database"}
    thread = start(mirror, said)
    thread.note(["a"])
    began = time.monotonic()
    assert not close(thread, patience_s=30)
    assert time.monotonic() - began < 2
    assert said == ["MLflow can't be used, the job goes on without it: it isn't a database"]
