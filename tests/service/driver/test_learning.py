"""Starting to learn: signals that come before there is a watch."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from tests.support import examples
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.learning import learn
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.signals import Stopping
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store


@pytest.fixture
def job(tmp_path: Path, tiny_sd: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that would start a Ray of its own; that of the tests stays."""
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = examples.config(tiny_sd, tiny_clip, "service.ray=local")
    manifest = Manifest.open(str(examples.write_manifest(tmp_path / "data", 2)))
    facts = sources.facts(config.model)
    todo = plan.make(manifest, config, facts, StoredResults())
    return Job(Store(str(tmp_path / "out")), manifest, config, facts, todo, Console(file=io.StringIO()))


@pytest.mark.parametrize(("number", "lost"), [(signal.SIGINT, ""), (0, "another job has taken over")])
def test_nothing_is_started_any_more(
    job: Job, monkeypatch: pytest.MonkeyPatch, number: int, lost: str
) -> None:
    """After a signal, or without the output: as may be between two waves."""

    def init(**_: Any) -> None:
        raise AssertionError("a Ray is started")

    monkeypatch.setattr(ray, "init", init)
    lock, stopping = Lock(job.store, print), Stopping()
    lock.lost, stopping.signal = lost, number
    assert learn(job, None, stopping, lock) == lost


def test_sigterm_while_ray_starts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own handler ends the process with code 15: it is noted as at any other time."""

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        assert learn(job, None, stopping, Lock(job.store, print)) == ""
        assert stopping.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) == stopping._note
    assert signal.getsignal(signal.SIGTERM) == before
