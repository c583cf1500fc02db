"""Waiting for conditions, in place of sleeping for a time that is hoped to be long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_S = 0.02


def wait_for(condition: Callable[[], T], timeout: float = 60, message: str = "waited in vain") -> T:
    """Asks again and again until the condition gives something true, and returns that.

    Raises AssertionError, with the message, after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{message} (after {timeout:g} s)"
        time.sleep(PAUSE_S)
    return found
