"""A Ray that `ray start --head` started on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.support.commands import RAY
from tests.support.network import answers, free_ports
from tests.support.waiting import wait_for


class Head:
    """A head with a folder and ports of its own, in a process group that ends with `stop`."""

    def __init__(
        self, folder: Path, *options: str, port: int = 0, environment: Mapping[str, str] = {}
    ) -> None:
        """`folder`: for its log. `options`: more of `ray start`. `port`: of Ray's control store; 0: a free one.
        `environment`: what differs from this process's. It runs in this process's working directory.
        """
        dashboard, agent, metrics, client, free = free_ports(5)
        port = port or free
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.address = f"127.0.0.1:{port}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self._log = (folder / "head.log").open("w+")
        self._process = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", "--disable-usage-stats"),
                f"--temp-dir=/tmp/ti{os.getpid()}",  # paths of sockets must be short
                f"--port={port}",
                f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}",
                f"--metrics-export-port={metrics}",
                f"--ray-client-server-port={client}",
                *options,
            ],
            stdout=self._log,
            stderr=self._log,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as in an activated environment
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                **environment,
            },
            start_new_session=True,
        )
        try:
            wait_for(lambda: answers(dashboard) or not self.is_running(), 180, "the head doesn't answer")
            assert self.is_running(), self.said()
        except AssertionError:
            self.stop()
            raise

    def is_running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """What it has printed so far."""
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        """Ends it, with the raylets that its autoscaler started."""
        family = psutil.Process(self._process.pid).children(recursive=True) if self.is_running() else []
        if self.is_running():
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in family:
            if process.is_running():
                process.kill()
        self._log.close()
