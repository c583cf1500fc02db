"""The project's commands: in this process, and in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.waiting import wait_for
from textinv_ray.cli.jobs import main

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
LOCAL_RAY = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
"""Environment of a command that starts a Ray of its own, with one thread for each of its processes."""


def textinv(*arguments: str) -> int:
    """Runs a `textinv` command in this process. Returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    code = stop.value.code
    return code if isinstance(code, int) else 0


def as_options(settings: Sequence[str]) -> list[str]:
    """Each setting as a --set."""
    return [part for setting in settings for part in ("--set", setting)]


class Command(subprocess.Popen[str]):
    """A started process. It prints into files: a full pipe that nobody reads would stop it."""

    def __init__(
        self, command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str] = {}
    ) -> None:
        """`log`: the files' path, to which .out and .err are added. `environment`: what differs from this one's."""
        self._out, self._err = log.with_name(log.name + ".out"), log.with_name(log.name + ".err")
        with self._out.open("w") as out, self._err.open("w") as err:
            super().__init__(
                command, cwd=folder, env={**os.environ, **environment}, stdout=out, stderr=err, text=True
            )

    def out(self) -> str:
        """What it has printed on stdout so far."""
        return self._out.read_text()

    def err(self) -> str:
        """What it has printed on stderr so far."""
        return self._err.read_text()

    def said(self) -> str:
        """Both."""
        return self.out() + self.err()

    def wait_for(self, condition: Callable[[], T], timeout: float = 400) -> T:
        """As `wait_for`; raises AssertionError at once when the process ends while the condition is false."""

        def while_it_runs() -> T:
            found = condition()
            if not found and self.poll() is not None:
                raise AssertionError(f"it ended: {self.said()}")
            return found

        return wait_for(while_it_runs, timeout)

    def ended(self, timeout: float = 400) -> tuple[int, str]:
        """Waits for its end. Returns (exit code, what it printed on stdout and stderr)."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.terminate()
            self.wait(60)
            raise AssertionError(f"it didn't end: {self.said()}") from None
        return self.returncode, self.said()


def finished(
    command: Sequence[str],
    folder: Path | None = None,
    environment: Mapping[str, str] = LOCAL_RAY,
    timeout: float = 400,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. `environment`: what differs from this one's."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def script(name: str, *arguments: str) -> list[str]:
    """The command line of a script of jobs/, such as invert_many."""
    return [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments]
