"""Signals to a job: the first asks it to stop, the second interrupts; then all is as before."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.support.waiting import wait_for
from textinv_ray.service.driver.signals import Stopping, sigterm_as_exit


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def send(number: signal.Signals) -> None:
    """Returns only if the signal raises nothing in this thread."""
    os.kill(os.getpid(), number)
    for _ in range(1000):  # Python runs a signal's handler between two of its instructions
        pass


@pytest.mark.parametrize(
    ("number", "code", "grace_s"), [(signal.SIGINT, 130, 30.0), (signal.SIGTERM, 143, 2.0)]
)
def test_the_first_signal_is_noted_and_the_second_interrupts(
    number: signal.Signals, code: int, grace_s: float
) -> None:
    before = handlers()
    with Stopping() as stopping:
        assert stopping.signal == 0
        os.kill(os.getpid(), number)
        wait_for(lambda: stopping.signal)
        assert (stopping.signal, stopping.exit_code, stopping.grace_s) == (number, code, grace_s)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert handlers() == before


def test_it_takes_the_signals_over_again() -> None:
    """As after `ray.init`, which takes them for itself; in the end they are those of before."""
    before = handlers()
    with Stopping() as stopping:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopping.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stopping.signal)
    assert handlers() == before


def test_sigterm_lets_blocks_end() -> None:
    before, left = handlers(), []

    def work() -> None:
        with sigterm_as_exit():
            try:
                send(signal.SIGTERM)
            finally:
                left.append("the lock is given back")

    with pytest.raises(SystemExit) as stop:
        work()
    assert (stop.value.code, len(left)) == (143, 1)
    assert handlers() == before


def test_other_threads_leave_signals_alone() -> None:
    before, during = handlers(), list[list[object]]()

    def run() -> None:
        with sigterm_as_exit():
            Stopping().listen()
            during.append(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == [before]
