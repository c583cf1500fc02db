"""Which Ray a job runs on; and a real submitted job."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobSubmissionClient

from tests.support import examples
from tests.support.commands import RAY, REPOSITORY, as_options
from tests.support.network import answers, free_ports
from tests.support.waiting import wait_for
from textinv_ray.service.cluster import connection
from textinv_ray.util.errors import UserError


def test_no_running_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: None)
    assert connection._running() is None


def test_a_running_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: address)
        assert connection._running() == address


def test_a_ray_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: f"127.0.0.1:{port}")
    assert connection._running() is None


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address of a `ray start --head` with ports and a folder of its own."""
    port, dashboard, agent, metrics, client = free_ports(5)
    folder = f"/tmp/ti{os.getpid()}"  # paths of sockets must be short
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an activated environment
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PATH": path}
    command = f"""start --head --block --num-cpus=2 --disable-usage-stats --temp-dir={folder} --port={port}
        --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --metrics-export-port={metrics}
        --ray-client-server-port={client}"""
    log = (tmp_path_factory.mktemp("head") / "head.log").open("w+")
    process = subprocess.Popen(
        [RAY, *command.split()], stdout=log, stderr=log, env=environment, start_new_session=True
    )
    try:
        wait_for(lambda: answers(dashboard) or process.poll() is not None, 120, "the head doesn't answer")
        assert process.poll() is None, (log.seek(0), log.read())
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


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
def test_a_submitted_job(head: str, tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """The command of the README's first line, on a cluster that is running; stopped, and submitted again."""
    examples.write_manifest(tmp_path / "data", 3)
    options = examples.settings(
        tiny_sd, tiny_clip, "service.workers=2", "service.checkpoint_every_s=0.2", "training.steps=1000"
    )
    begun = submit(head, tmp_path, options, "--no-wait", "--submission-id", "first")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    wait_for(lambda: list((tmp_path / "out").glob("concepts/*/checkpoint.safetensors")), 300, "no checkpoint")
    # At once: in the seconds that `ray job stop` takes to start, a thousand steps are soon taken.
    jobs = JobSubmissionClient(head)
    assert jobs.stop_job("first")
    wait_for(lambda: jobs.get_job_status("first").is_terminal(), 60, "the job goes on")
    log = (tmp_path / "out" / "job.log").read_text()
    assert "stopping: the workers write checkpoints" in log

    done = submit(head, tmp_path, options, "--submission-id", "second")
    assert done.returncode == 0, done.stdout + done.stderr
    # Not what `ray job submit` prints: it may close its stream of the log before the last lines came.
    printed = jobs.get_job_logs("second")
    assert "Ray: the running cluster, 1 node" in printed
    assert re.search(r"\d of \d concepts? learned in .* 0 failed", printed)
    assert pq.read_table(tmp_path / "out" / "results.parquet").num_rows == 3
    again = (tmp_path / "out" / "job.log").read_text()[len(log) :]
    assert re.search(r"from step [1-9]\d* of 1000", again), "something went on from a checkpoint"


def test_a_ray_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[dict[str, object]] = []

    def init(**options: object) -> None:
        tries.append(options)
        if len(tries) != 2:
            raise RuntimeError("The current node timed out during startup.\nMore.")

    monkeypatch.setattr(connection.ray, "init", init)
    monkeypatch.setattr(connection.ray, "shutdown", lambda: None)
    connection._init(address="local")
    assert len(tries) == 2
    with pytest.raises(
        UserError, match=r"the Ray at 'local' can't be used: The current node timed out during"
    ):
        connection._init(address="local")
