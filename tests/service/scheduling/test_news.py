"""What workers hear while they wait for the scheduler: at once what is new, and otherwise something after a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.support.clock import Clock
from tests.support.rows import Rows
from tests.support.schedulers import ids, make, ready
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.store import Store


def later(action: Callable[[], object]) -> None:
    threading.Timer(0.1, action).start()


def took(ask: Callable[[], object]) -> tuple[object, float]:
    """(the answer, seconds until it came)."""
    began = time.monotonic()
    return ask(), time.monotonic() - began


def test_news_come_at_once_and_otherwise_after_a_while(store: Store) -> None:
    scheduler = ready(Rows.numbered(2), store)
    (name,) = ids(scheduler, "w", 1)
    cursor = scheduler.status(0).cursor
    status, seconds = took(lambda: scheduler.status(cursor, 0.2))
    assert seconds >= 0.2, "nothing has happened"

    def finish() -> None:
        scheduler.ack("w", name)
        scheduler.publish()

    later(finish)
    status, seconds = took(lambda: scheduler.status(cursor, 60))
    assert [event.concept_id for event in status.events] == [name]  # type: ignore[attr-defined]
    assert seconds < 30
    later(lambda: scheduler.halt("the store refuses"))
    status, seconds = took(lambda: scheduler.status(status.cursor, 60))  # type: ignore[attr-defined]
    assert status.problem == "the store refuses"  # type: ignore[attr-defined]
    assert seconds < 30


@pytest.mark.parametrize(
    "change",
    [
        lambda scheduler: scheduler.give_back("busy", "c0"),
        lambda scheduler: scheduler.leave("busy", "it died"),
        lambda scheduler: scheduler.stop(),
        lambda scheduler: scheduler.halt("x"),
        lambda scheduler: [scheduler.ack("busy", name) for name in ("c0", "c1")],
    ],
    ids=["given back", "worker lost", "stopped", "halted", "all done"],
)
def test_an_idle_worker_hears_of_work_and_of_the_end(
    store: Store, change: Callable[[Scheduler], object]
) -> None:
    scheduler = ready(Rows.numbered(2), store)
    assert len(ids(scheduler, "busy", 2)) == 2
    answer = scheduler.take("idle", 1)
    assert not answer.leases
    pending = scheduler.more(answer)
    assert pending.answer(0.05) is None
    later(lambda: change(scheduler))
    found, seconds = took(lambda: pending.answer(60))
    assert found is True
    assert seconds < 30


def test_an_idle_worker_hears_of_a_worker_that_fell_silent(store: Store) -> None:
    clock = Clock()
    scheduler = ready(Rows.numbered(1), store, clock=clock)
    ids(scheduler, "busy", 1)
    pending = scheduler.more(scheduler.take("idle", 1))
    clock.now += 61
    later(scheduler.publish)
    assert pending.answer(60) is True
    assert ids(scheduler, "idle", 1) == ["c0"]


def test_an_idle_worker_hears_of_a_concept_that_was_read_later(store: Store) -> None:
    scheduler = make(Rows.numbered(1), store)
    answer = scheduler.take("idle", 1)
    assert not answer.leases
    later(scheduler.read)
    assert scheduler.more(answer).answer(60) is True
    assert ids(scheduler, "idle", 1) == ["c0"]


def test_workers_hear_at_once_that_they_must_leave(store: Store) -> None:
    scheduler = ready(Rows.numbered(1), store)
    here, there = scheduler.notice("here"), scheduler.notice("there")
    later(lambda: scheduler.drain({"here"}))
    found, seconds = took(lambda: here.answer(60))
    assert (found, there.answer(0)) == (True, None)
    assert seconds < 30
    later(scheduler.stop)
    assert there.answer(60) is True
