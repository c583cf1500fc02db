"""The exit codes of all commands: the one table. The help of each command and docs/commands.md are made from it."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """What the exit code of a command says."""

    DONE = 0
    """All is done."""
    INCOMPLETE = 1
    """The rest is done; what failed was listed."""
    USER_ERROR = 2
    """A `UserError`, or a command that the parser refuses."""
    FAULT = 3
    """An exception that nobody foresaw."""
    INTERRUPTED = 128 + signal.SIGINT
    """As shells count."""
    TERMINATED = 128 + signal.SIGTERM
    """As shells count."""


MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.DONE: "all is done",
    ExitCode.INCOMPLETE: "some concepts, words or pictures failed (they are listed)",
    ExitCode.USER_ERROR: "the command, the settings or the input is wrong, or something can't be reached",
    ExitCode.FAULT: "a fault of textinv_ray itself",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
    ExitCode.TERMINATED: "stopped by SIGTERM",
}
"""In words, for the help and the documentation."""


def in_a_line() -> str:
    """All of them, for the end of a command's help."""
    return "Exit codes: " + "; ".join(f"{code:d} {meaning}" for code, meaning in MEANINGS.items()) + "."
