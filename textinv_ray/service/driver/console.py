"""What a user sees: our lines and one progress line. What libraries say goes to the log file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from textinv_ray.service.driver.json_log import JsonLog
from textinv_ray.util.logs import LogFormat, formatter, json_line
from textinv_ray.util.redact import redact_text
from textinv_ray.util.terminal import PlainConsole
from textinv_ray.util.text import duration

_PLAIN_EVERY_S = 15.0  # Between progress lines where there is no terminal.
_RATE_OVER_S = 90.0
_LONGEST_LINE = 2**20  # bytes
_NOISE = b"Failed to query Ray Train Controller actor state"
"""Logged every second by a helper of each trainer on a Ray without a dashboard, as a local one is. What it can't do
there, `ray_internals.free_reservations_of_the_dead` does."""


class Screen(Protocol):
    """Shows a job in place of a terminal, such as below a cell of a notebook. Called from several threads."""

    def line(self, text: str) -> None:
        """A line for the user."""

    def progress(self, text: str, share: float) -> None:
        """How far the job is, in words and as a share of its steps in [0, 1]."""


@contextlib.contextmanager
def captured(
    log: Path, verbose: bool, log_format: LogFormat = "text", screen: Screen | None = None
) -> Iterator[Console]:
    """A console for our own lines, while all else that this process and its children print goes to `log`.

    Done on file descriptors, because some of it comes from libraries' C++ and from child processes. With
    `verbose` it is shown too. Our own lines are logged as well. Credentials in URIs are left out of it all.
    `log_format`: of `log`; "json" makes a line of JSON of each.
    `screen`: what shows our lines; None: what stdout was.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept_out, kept_err = os.dup(1), os.dup(2)
    log_text = log.open("a", encoding="utf-8")
    out: TextIO = _Shown(kept_out) if screen is None else _Lines(screen)
    is_json = log_format == "json"
    pump = _Pump(log_text.fileno(), *([kept_err] if verbose else []), is_json=is_json)
    os.dup2(pump.entry, 1)
    os.dup2(pump.entry, 2)
    python_out, python_err, python_text = sys.stdout, sys.stderr, _text(pump.entry)
    kept_by_libraries = _Switched(python_text)
    if screen is not None:  # a notebook's sys.stdout and sys.stderr don't write to file descriptors
        sys.stdout = sys.stderr = kept_by_libraries
    handler = logging.StreamHandler(_text(pump.entry))
    handler.setFormatter(formatter(log_format))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield _LoggingConsole(out, log_text, is_json=is_json)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        sys.stdout, sys.stderr = python_out, python_err
        kept_by_libraries.target = python_err
        for end in (handler.stream.close, python_text.close, sys.stdout.flush, sys.stderr.flush):
            with contextlib.suppress(OSError):  # a full disk
                end()
        os.dup2(kept_out, 1)
        os.dup2(kept_err, 2)
        pump.close()
        for file in (log_text, out):
            with contextlib.suppress(OSError):
                file.close()
        os.close(kept_out)
        os.close(kept_err)


def _text(descriptor: int) -> TextIO:
    """A text file of its own on a copy of a descriptor."""
    return os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace")


class _Shown(io.TextIOWrapper):
    """What stdout was. What can't be written there is lost, and the job goes on: the reader may have ended, as in
    `| head`, or the disk may be full.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(_Unfailing(os.dup(descriptor), "wb"), encoding="utf-8", errors="replace")


class _Unfailing(io.FileIO):
    """A file on a descriptor, without a buffer. A write that fails counts as done."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data) or 0
        return len(data)


class _Switched(io.TextIOBase):
    """A text file that loggers may keep for longer than it is wanted: its target can be changed."""

    def __init__(self, target: TextIO) -> None:
        self.target = target

    def write(self, text: str) -> int:
        written = self.target.write(text)
        self.target.flush()
        return written

    def flush(self) -> None:
        self.target.flush()

    def writable(self) -> bool:
        return True


class _Lines(io.StringIO):
    """A text file whose lines a screen shows."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def flush(self) -> None:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        for line in text.splitlines():
            self._screen.line(line)


class _LoggingConsole(PlainConsole):
    """Prints for the user, and the same words into the log file. Brackets are brackets, not markup."""

    def __init__(self, out: TextIO, log: TextIO, *, is_json: bool) -> None:
        width = None if out.isatty() else 120
        # Kernels of notebooks set FORCE_COLOR, which rich takes for a terminal
        super().__init__(file=out, width=width, force_terminal=False if isinstance(out, _Lines) else None)
        self._log, self._is_json = log, is_json
        # A line of JSON is never wrapped
        width = 1000 if is_json else 120
        self._plain = PlainConsole(file=log, width=width, no_color=True, soft_wrap=False)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        with self._plain.capture() as caught:
            self._plain.print(*objects, **options)
        text = caught.get()
        if self._is_json:
            lines = [line.rstrip() for line in text.splitlines() if line.strip()]
            text = "".join(json_line("INFO", line) + "\n" for line in lines)
        with contextlib.suppress(OSError):  # a full disk
            self._log.write(text)
            self._log.flush()


class _Pump:
    """Copies the lines that are written to its entry to several places, without credentials."""

    def __init__(self, *targets: int, is_json: bool) -> None:
        self._json = JsonLog() if is_json else None
        self._exit, self.entry = os.pipe()
        # Its own, so that the numbers aren't other files' while a child that lives on still writes
        self._targets = [os.dup(target) for target in targets]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.close(self.entry)
        self._thread.join(2)  # a child that lives on may hold the other end open

    def _run(self) -> None:
        rest = b""
        while data := os.read(self._exit, 65536):
            # A URI must not be cut in two: what is no whole line yet waits, unless it gets too long for one.
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, newline, rest = lines + newline + rest, b"", b""
            self._write(lines + newline)
        self._write(rest)
        for descriptor in (self._exit, *self._targets):
            os.close(descriptor)

    def _write(self, data: bytes) -> None:
        if _NOISE in data:
            data = b"".join(line for line in data.splitlines(keepends=True) if _NOISE not in line)
        text = data.decode(errors="replace")
        clean = (self._json.converted(text) if self._json else redact_text(text)).encode()
        for target in self._targets:
            with contextlib.suppress(OSError), os.fdopen(os.dup(target), "wb") as file:
                file.write(clean)


class Progress:
    """One line: concepts done, failed and running, steps per second, time left."""

    def __init__(self, console: Console, concepts: int, steps: int, screen: Screen | None = None) -> None:
        """`concepts` to do, `steps` of all of them together. `screen`: that of `captured`."""
        self._console = console
        self._concepts = concepts
        self._steps = steps
        self._screen = screen
        self._done = 0
        self._seen: deque[tuple[float, int, int]] = deque()
        self._printed = time.monotonic()
        self._live = (
            # Not redirected: what libraries print goes to the log file, not onto the screen
            Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(
        self,
        done: int,
        failed: int,
        running: int,
        steps_computed: int,
        steps_reached: int,
        waiting_for: str = "",
    ) -> None:
        """The present state: printed anew on a terminal, and every 15 s elsewhere.

        waiting_for: what the workers can't start without; empty when nothing is known to be missing.
        """
        now = time.monotonic()
        if self._seen and steps_computed < self._seen[-1][1]:
            self._seen.clear()  # a scheduler that was restarted counts anew
        self._done = max(self._done, done)  # and has yet to find in the store what is done
        self._seen.append((now, steps_computed, steps_reached))
        while now - self._seen[0][0] > _RATE_OVER_S and len(self._seen) > 2:
            self._seen.popleft()
        line = f"{self._done} of {self._concepts} concepts done"
        if failed:
            line += f", {failed} failed"
        line += f", {running} running"
        rate = self._rate()
        if rate:
            line += f" · {rate:.1f} steps/s · {duration(max(0, self._steps - steps_reached) / rate)} left"
        elif not steps_computed:
            line += f" · {waiting_for or 'starting the workers and loading the model'}"
        if self._screen:
            # Predicted words take no steps at all
            share = max(done / self._concepts, steps_reached / max(1, self._steps))
            self._screen.progress(line, min(1.0, share))
        elif self._live:
            self._live.update(Text(line), refresh=True)
        elif now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            self._console.print(line)

    def _rate(self) -> float:
        """Steps per second lately; 0 while unknown."""
        started = next((seen for seen in self._seen if seen[1] > 0), None)
        last = self._seen[-1]
        if started is None or last[0] - started[0] < 2:
            return 0.0
        return (last[1] - started[1]) / (last[0] - started[0])
