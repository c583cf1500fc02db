"""The tracker: whatever MLflow does, the job goes on, hears of it once, and the view catches up."""

from __future__ import annotations

import time
from typing import Any

import pytest

from textinv_ray.service.tracking import background as trackers
from textinv_ray.service.tracking.background import MirrorThread


class MLflowMirror:
    """Stands for tracking.MLflowMirror: fails when told to."""

    def __init__(self) -> None:
        self.away = False
        self.slow = 0.0
        self.updated: list[str] = []
        self.behind: list[str] = []

    def open(self) -> None:
        self.update("")

    def missing(self) -> list[str]:
        return self.behind

    def update(self, concept_id: str) -> None:
        time.sleep(self.slow)
        if self.away:
            raise ConnectionError("refused by https://me:secret@host/")
        if concept_id:
            self.updated.append(concept_id)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_RETRY_S", (0.02, 0.05))


def start(view: MLflowMirror, said: list[str]) -> MirrorThread:
    made: Any = view
    return MirrorThread(made, said.append)


def test_all_that_is_noted_is_written() -> None:
    view, said = MLflowMirror(), list[str]()
    view.behind = ["old"]
    tracker = start(view, said)
    tracker.note(["a", "b"])
    assert tracker.finish(5)
    assert sorted(view.updated) == ["a", "b", "old"]
    assert said == []


def test_away_for_a_while() -> None:
    view, said = MLflowMirror(), list[str]()
    view.away = True
    tracker = start(view, said)
    tracker.note(["a"])
    time.sleep(0.2)
    view.away = False
    assert tracker.finish(5)
    assert view.updated == ["a"]
    assert said == [
        "MLflow can't be written to for now, the job goes on: refused by https://host/",
        "MLflow is back; its view catches up",
    ]


def test_away_for_good() -> None:
    view, said = MLflowMirror(), list[str]()
    view.away = True
    tracker = start(view, said)
    tracker.note(["a"])
    began = time.monotonic()
    assert not tracker.finish(0.3)
    assert time.monotonic() - began < 3
    assert len(said) == 1
    view.away = False
    tracker._thread.join(5)
    assert not tracker._thread.is_alive()
    assert view.updated == [], "who gave up doesn't write beside the one who catches up"


def test_slow_is_not_away() -> None:
    view, said = MLflowMirror(), list[str]()
    tracker = start(view, said)
    view.slow = 0.1
    tracker.note([f"c{index}" for index in range(8)])
    assert tracker.finish(0.2), "as long as it gets on, it is waited for"
    assert len(view.updated) == 8


def test_no_time_left() -> None:
    view, said = MLflowMirror(), list[str]()
    tracker = start(view, said)
    view.slow = 0.2
    tracker.note([f"c{index}" for index in range(20)])
    began = time.monotonic()
    assert not tracker.finish(30, limit_s=0.3)
    assert time.monotonic() - began < 2
