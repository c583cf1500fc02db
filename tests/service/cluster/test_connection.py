"""Which Ray a job runs on; and a real submitted job."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from ray._private.utils import write_ray_address
from ray.job_submission import JobSubmissionClient
from rich.console import Console

from tests.support import examples
from tests.support.commands import RAY, REPOSITORY, as_options
from tests.support.heads import Head
from tests.support.metrics import scraped
from tests.support.network import free_ports
from tests.support.waiting import wait_for
from textinv_ray.config.job import JobConfig
from textinv_ray.service import metrics
from textinv_ray.service.cluster import connection
from textinv_ray.service.metrics import METRICS
from textinv_ray.util.errors import UserError


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Leaves an address where `ray start` does."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return write_ray_address


def test_no_running_ray(started: Callable[[str], None]) -> None:
    assert connection.started_here() is None


def test_a_running_ray(started: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started(address)
        assert connection.started_here() == address


def test_a_ray_that_is_gone(started: Callable[[str], None]) -> None:
    (port,) = free_ports(1)
    started(f"127.0.0.1:{port}")
    assert connection.started_here() is None


def test_a_ray_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []

    def init(**options: object) -> types.SimpleNamespace:
        tries.append(options["address"])
        if len(tries) != 2:
            raise RuntimeError("The current node timed out during startup.\nMore.")
        return types.SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    config, console = JobConfig.load("mini"), Console(file=io.StringIO())
    assert connection.connect(config, console) is False
    assert tries == ["local", "local"]
    with pytest.raises(
        UserError, match=r"the Ray at 'local' can't be used: The current node timed out during"
    ):
        connection.connect(config, console)


def test_sigterm_while_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Ray's own handler, whose code is 15."""

    def init(**_: object) -> None:
        sys.exit(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(SystemExit) as stop:
        connection.connect(JobConfig.load("mini"), Console(file=io.StringIO()))
    assert stop.value.code == 143


def test_a_ray_that_runs_here_is_not_joined_unasked(
    started: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[object] = []

    def init(**options: object) -> types.SimpleNamespace:
        joined.append(options["address"])
        return types.SimpleNamespace(dashboard_url="h:8265")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started(address)
        for given in ([], ["service.ray=auto"], ["service.ray=h:6379"], ["service.ray=local"]):
            connection.connect(JobConfig.load("mini", given), Console(file=out, width=200))
    assert joined == ["local", address, "h:6379", "local"]
    assert out.getvalue().splitlines() == [
        "Ray: started on this machine for this job",
        f"  (a cluster of `ray start` runs at {address}: --ray auto joins it)",
        f"Ray: the cluster at {address}, 1 node, dashboard http://h:8265",
        "Ray: the cluster at h:6379, 1 node, dashboard http://h:8265",
        "Ray: started on this machine for this job",
    ]


def test_auto_without_a_ray(started: Callable[[str], None]) -> None:
    with pytest.raises(UserError, match="--ray auto: no Ray that `ray start` started or joined runs"):
        connection.connect(JobConfig.load("mini", ["service.ray=auto"]), Console(file=io.StringIO()))


JOIN = """
import os
import signal
import sys
from rich.console import Console
from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster import connection
from textinv_ray.util.errors import UserError
try:
    connection.connect(JobConfig.load("mini", ["service.ray=" + sys.argv[1]]), Console(width=200))
except UserError as error:
    print(error)
else:
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def join(address: str, home: Path) -> str:
    """What a process with this home folder says that joins, or starts, a Ray without RAY_AUTH_MODE."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (143 if done.stdout.startswith("Ray:") else 0), (
        "SIGTERM ends it as shells expect"
    )
    return done.stdout


@pytest.mark.slow
def test_authentication_tokens(tmp_path: Path) -> None:
    """A local Ray leaves no token behind; a cluster that asks for one is joined with it, and else says what to do."""
    known, unknown = tmp_path / "known", tmp_path / "unknown"
    for home in (known, unknown):
        home.mkdir()
    assert join("local", unknown) == "Ray: started on this machine for this job\n"
    assert not (unknown / ".ray" / "auth_token").exists()

    (known / ".ray").mkdir()
    (known / ".ray" / "auth_token").write_text("0123456789abcdef" * 2)
    head = Head(tmp_path, "--num-cpus=1", environment={"RAY_AUTH_MODE": "token", "HOME": str(known)})
    try:
        assert f"Ray: the cluster at {head.address}, 1 node" in join(head.address, known)
        assert "asks for an authentication token: copy the file ~/.ray/auth_token" in join(
            head.address, unknown
        )
    finally:
        head.stop()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A `ray start --head` that exports metrics every second; Ray's own interval is ten."""
    started = Head(tmp_path, "--num-cpus=2", environment={"RAY_metrics_report_interval_ms": "1000"})
    try:
        yield started
    finally:
        started.stop()


OF_WORKERS = {metric.exported for metric in (metrics.PACK_SIZE, metrics.PACK_CONCEPTS, metrics.WRITE_QUEUE)}
"""Gauges, which end with their process."""


def submit(head: str, folder: Path, options: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of the README's first line."""
    return subprocess.run(
        [
            *(RAY, "job", "submit", "--address", head, "--working-dir", ".", *more, "--"),
            *("python", "jobs/invert_many.py", str(folder / "data" / "manifest.parquet")),
            *("-o", str(folder / "out"), *as_options(options)),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_a_submitted_job(head: Head, tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """The command of the README's first line, on a cluster that is running; stopped, and submitted again. Its metrics
    come to Ray's own endpoint."""
    examples.write_manifest(tmp_path / "data", 3)
    options = examples.settings(
        tiny_sd, tiny_clip, "service.workers=2", "service.checkpoint_every_s=0.2", "training.steps=1000"
    )
    begun = submit(head.dashboard, tmp_path, options, "--no-wait", "--submission-id", "first")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: list((tmp_path / "out").glob("concepts/*/checkpoint.safetensors")), 300, "no checkpoint")
    # At once: in the seconds that `ray job stop` takes to start, a thousand steps are soon taken.
    jobs = JobSubmissionClient(head.dashboard)
    wait_for(
        lambda: {sample.name for sample in scraped(head.metrics)} >= OF_WORKERS, 60, "no metrics of workers"
    )
    at_work = scraped(head.metrics)
    assert jobs.stop_job("first")
    wait_for(lambda: jobs.get_job_status("first").is_terminal(), 60, "the job goes on")
    log = (tmp_path / "out" / "job.log").read_text()
    assert "stopping: the workers write checkpoints" in log

    done = submit(head.dashboard, tmp_path, options, "--submission-id", "second")
    assert done.returncode == 0, done.stdout + done.stderr
    # Not what `ray job submit` prints: it may close its stream of the log before the last lines came.
    printed = jobs.get_job_logs("second")
    assert re.search(r"Ray: the cluster at \S+, 1 node, dashboard http:", printed)
    assert re.search(r"\d of \d concepts? learned in .* 0 failed", printed)
    assert pq.read_table(tmp_path / "out" / "results.parquet").num_rows == 3
    again = (tmp_path / "out" / "job.log").read_text()[len(log) :]
    assert re.search(r"from step [1-9]\d* of 1000", again), "something went on from a checkpoint"

    samples = [*at_work, *scraped(head.metrics)]
    assert {sample.tags["job_name"] for sample in samples} == {str(tmp_path / "out")}
    states = {
        sample.tags["state"]: sample.value for sample in samples if sample.name == "ray_textinv_concepts"
    }
    assert states.keys() == {"waiting", "running", "done", "failed"}
    workers = {sample.tags["worker"] for sample in samples if sample.name == "ray_textinv_steps_total"}
    assert len(workers) >= 2
    assert "" not in workers
    without = {"look", "lease_losses", "steps_redone", "retries", "memory_splits"}  # what doesn't happen here
    expected = {metric.exported for metric in METRICS if not any(part in metric.name for part in without)}
    assert {name for name in expected if not any(sample.name.startswith(name) for sample in samples)} == set()
