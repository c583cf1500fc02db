"""The watch over a job: what ends it, what it tells, and that a signal lets workers write checkpoints first."""

from __future__ import annotations

import dataclasses
import io
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from rich.console import Console

from tests.support import examples
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.cluster.fleet import FleetState
from textinv_ray.service.driver import console
from textinv_ray.service.driver import watch as watching
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.signals import Stopping
from textinv_ray.service.driver.watch import watch
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.scheduling.leases import Event
from textinv_ray.service.scheduling.protocol import SchedulerStatus
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store


def status(cursor: int = 0, **changes: Any) -> SchedulerStatus:
    fields: dict[str, Any] = {
        "begun": True,
        "done": 0,
        "failed": 0,
        "skipped": 0,
        "running": 1,
        "over": False,
        "steps_computed": 0,
        "steps_reached": 0,
        "steps_redone": 0,
        "events": (),
        "cursor": cursor,
        "problem": "",
    }
    return SchedulerStatus(**{**fields, **changes})


Found = TypeVar("Found")


class Told(Generic[Found]):
    """A question that has its answer when it is asked for."""

    def __init__(self, tell: Callable[[], Found]) -> None:
        self._tell = tell

    def answer(self, timeout_s: float) -> Found:
        return self._tell()


class Scripted:
    """A scheduler that gives these statuses, the last one again and again, and notes what it is asked."""

    def __init__(self, *statuses: SchedulerStatus, is_over: bool = False) -> None:
        """`is_over`: whether nothing is left for workers, which statuses tell once the events are published."""
        self._statuses = list(statuses)
        self._is_over = is_over
        self.cursors: list[int] = []
        self.stopped_after: int | None = None

    def status(self, cursor: int) -> SchedulerStatus:
        self.cursors.append(cursor)
        found = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return found

    def news(self, cursor: int) -> Told[SchedulerStatus]:
        return Told(lambda: self.status(cursor))

    def is_over(self) -> bool:
        return self._is_over

    def stop(self) -> None:
        self.stopped_after = len(self.cursors)


class Trainers:
    def __init__(self, count: int = 1, errors: str = "") -> None:
        self._state = FleetState(count, errors)

    def changes(self, trainers: int) -> Told[FleetState]:
        return Told(lambda: self._state)


class News:
    """Stands where the MLflow thread is told which concepts have news."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def note(self, concept_ids: Iterable[str]) -> None:
        self.noted += concept_ids


@pytest.fixture
def job(tmp_path: Path, tiny_sd: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    config: JobConfig = examples.config(tiny_sd, tiny_clip)
    manifest = Manifest.open(str(examples.write_manifest(tmp_path / "data", 2)))
    facts = sources.facts(config.model)
    todo = plan.make(manifest, config, facts, StoredResults())
    monkeypatch.setattr(watching, "POLL_S", 0.01)
    return Job(
        Store(str(tmp_path / "out")), manifest, config, facts, todo, Console(file=io.StringIO(), width=200)
    )


def watched(
    job: Job,
    scheduler: Any,
    trainers: Any = None,
    news: Any = None,
    stopping: Stopping | None = None,
    lock: Lock | None = None,
    missing: Callable[[], str] = str,
) -> str:
    lock = lock or Lock(job.store, print)
    fleet: Any = trainers or Trainers()
    return watch(job, scheduler, fleet, news, stopping or Stopping(), lock, missing)


def said(job: Job) -> str:
    assert isinstance(job.console.file, io.StringIO)
    return job.console.file.getvalue()


def test_it_ends_when_all_is_over_and_tells_what_happened(job: Job) -> None:
    events = (Event("done", "c0"), Event("failed", "c1", "image c1-0.png: is truncated"))
    scheduler = Scripted(status(), status(2, events=events), status(2, over=True, running=0))
    news = News()
    assert watched(job, scheduler, news=news) == ""
    assert scheduler.cursors == [0, 0, 2], "each event is asked for once"
    assert news.noted == ["c0", "c1"]
    assert said(job).count("c1 failed: image c1-0.png: is truncated") == 1
    assert scheduler.stopped_after is None


NOTHING_YET = status(begun=False, running=0, failed=1)
"""No worker has started; one row's image can't be read, which the preparation finds without any."""


def test_what_the_cluster_lacks_is_said(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WAITING_AFTER_S", 0.0)
    monkeypatch.setattr(console, "_PLAIN_EVERY_S", 0.0)
    scheduler = Scripted(NOTHING_YET, NOTHING_YET, status(over=True, running=0))
    assert watched(job, scheduler, missing=lambda: "waiting for 1 GPU: the cluster has 0") == ""
    assert "0 running · waiting for 1 GPU: the cluster has 0" in said(job)


def test_waiting_for_resources_has_an_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WAITING_AFTER_S", 0.0)
    service = job.config.service.model_copy(update={"wait_for_resources_min": 1e-9})
    patient = dataclasses.replace(job, config=job.config.model_copy(update={"service": service}))
    scheduler = Scripted(*[NOTHING_YET] * 3, status(over=True))
    problem = watched(patient, scheduler, missing=lambda: "waiting for 1 GPU")
    assert re.fullmatch(r"no worker could start within \S+ minutes \(waiting for 1 GPU\)", problem)


def test_a_job_that_has_begun_waits_for_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WAITING_AFTER_S", 0.0)

    def missing() -> str:
        raise AssertionError("asked for what isn't missing")

    assert watched(job, Scripted(status(), status(over=True)), missing=missing) == ""


def test_a_problem_ends_it(job: Job) -> None:
    assert watched(job, Scripted(status(), status(problem="the store refuses"))) == "the store refuses"


def test_workers_that_have_all_left_end_it(job: Job) -> None:
    assert watched(job, Scripted(status()), Trainers(0, "CUDA error")) == "all workers have left: CUDA error"


def test_workers_that_leave_when_all_is_done_do_not_end_it_early(job: Job) -> None:
    """The fleet may tell that the last one is gone before the scheduler has published what it did."""
    events = (Event("done", "c0"), Event("done", "c1"))
    last = status(2, events=events, over=True, done=2, running=0)
    scheduler = Scripted(status(running=0), status(running=0), last, is_over=True)
    news = News()
    assert watched(job, scheduler, Trainers(0), news) == ""
    assert news.noted == ["c0", "c1"]


def test_an_output_that_another_job_has_taken_over_ends_it(job: Job) -> None:
    lock = Lock(job.store, print)
    lock.lost = "another job, on far, has taken over this output"
    scheduler = Scripted(status())
    assert watched(job, scheduler, lock=lock) == lock.lost
    assert scheduler.stopped_after == 1, "its workers write no more"


def test_a_signal_waits_for_the_checkpoints(job: Job) -> None:
    stopping = Stopping()
    stopping.signal = signal.SIGINT
    scheduler = Scripted(status(), status(), status(), status(running=0))
    assert watched(job, scheduler, stopping=stopping) == ""
    assert scheduler.stopped_after == 1
    assert len(scheduler.cursors) == 4, "until no worker holds a concept"
    assert "stopping: the workers write checkpoints; the same command goes on from there" in said(job)
