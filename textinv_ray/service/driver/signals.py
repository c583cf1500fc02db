"""Ctrl-C and SIGTERM: a request to stop in good order."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from textinv_ray.util.exit_codes import ExitCode

# Seconds for workers to write checkpoints. `ray job stop` kills 3 s after its SIGTERM.
_GRACE_S = {signal.SIGINT: 30.0, signal.SIGTERM: 2.0}


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that what was taken (a lock) is given back; a `Stopping` may take over within."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopping:
    """While entered, the first signal is noted and the second one interrupts. Only in the main thread."""

    def __init__(self) -> None:
        self.signal = 0
        """The signal that asked to stop; 0: none."""
        self._before: dict[signal.Signals, Any] = {}

    @property
    def grace_s(self) -> float:
        """How long there is to stop."""
        return _GRACE_S[signal.Signals(self.signal)]

    @property
    def exit_code(self) -> ExitCode:
        """As shells count: 130 for Ctrl-C, 143 for SIGTERM."""
        return ExitCode(128 + self.signal)

    def listen(self) -> None:
        """Takes the signals over. To be called again after `ray.init`, which takes them for itself."""
        if threading.current_thread() is threading.main_thread():
            for number in _GRACE_S:
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def __enter__(self) -> Stopping:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
