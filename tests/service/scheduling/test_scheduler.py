"""The scheduler: reads ahead a little, records failures before anyone hears of them, knows when it can't go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import examples
from tests.support.clock import Clock
from tests.support.rows import Rows
from tests.support.schedulers import ids, make, ready
from tests.support.waiting import wait_for
from textinv_ray.service.scheduling.protocol import PreparedConcept, PreparedRow
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.store import Store


def test_reads_only_a_little_ahead(store: Store) -> None:
    taken: list[str] = []
    ahead: list[int] = []  # how many concepts waited after each row

    class Watched(Rows):
        def iter_rows(self, wanted: Collection[str]) -> Iterator[PreparedRow]:
            for row in super().iter_rows(wanted):
                ahead.append(self.pulled - scheduler.status(0).running)
                yield row

    scheduler = make(Watched.numbered(50), store, ahead=4)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(scheduler.read)
        while len(taken) < 50:
            taken += ids(scheduler, "w", 3)
        reading.result(10)
    assert max(ahead) <= 4


def test_a_lease_carries_the_concept_and_its_stamp(store: Store) -> None:
    scheduler = ready(Rows.numbered(1), store)
    (lease,) = scheduler.take("w", 1).leases
    assert scheduler.fetch(lease) == PreparedConcept(b"x", "stamp 0")


def test_to_the_end(store: Store) -> None:
    scheduler = ready(Rows.numbered(3), store)
    seen: list[str] = []
    while not (answer := scheduler.take("w", 2)).over:
        for lease in answer.leases:
            scheduler.ack("w", lease.concept_id)
            seen.append(lease.concept_id)
    assert seen == ["c0", "c1", "c2"]
    assert scheduler.is_over()
    assert not scheduler.status(0).over, "its events aren't published yet"
    scheduler.publish()
    status = scheduler.status(0)
    assert status.over
    assert [event.concept_id for event in status.events] == seen


def test_events_are_told_once(store: Store) -> None:
    scheduler = ready(Rows.numbered(2), store)
    scheduler.take("w", 2)
    scheduler.saved("w", "c0", 3)
    scheduler.publish()
    first = scheduler.status(0)
    scheduler.ack("w", "c0")
    scheduler.publish()
    second = scheduler.status(first.cursor)
    assert [[event.kind for event in status.events] for status in (first, second)] == [["saved"], ["done"]]
    assert scheduler.status(second.cursor).events == ()


def test_images_that_failed_are_in_the_store_when_heard_of(store: Store) -> None:
    scheduler = ready(Rows.numbered(2, error="image x: is truncated", concept=b""), store)
    assert not scheduler.status(0).events
    scheduler.publish()
    status = scheduler.status(0)
    assert (status.failed, status.begun) == (2, False), "no worker is needed to find that"
    failure = store.failure(status.events[0].concept_id)
    assert failure is not None
    assert failure.error == "image x: is truncated"
    assert status.over


def test_whether_it_failed_or_took_workers_down(store: Store) -> None:
    """Only what took down `max_attempts` workers is quarantined."""
    scheduler = ready(Rows.numbered(2), store)
    for attempt in (1, 2):
        assert "c0" in ids(scheduler, f"w{attempt}", 1 if attempt == 1 else 2)
        scheduler.leave(f"w{attempt}", "segmentation fault")
    scheduler.take("v", 2)
    scheduler.fail("v", "c1", "not finite")
    scheduler.publish()
    found = {failure.concept_id: (failure.error, failure.quarantined) for failure in store.failures()}
    assert found == {
        "c0": ("segmentation fault (2 of 2 attempts)", True),
        "c1": ("not finite", False),
    }
    restarted = ready(Rows.numbered(2), store, was_restarted=True)
    restarted.publish()
    assert {failure.concept_id: failure.quarantined for failure in store.failures()} == {
        "c0": True,
        "c1": False,
    }


def test_a_store_that_is_away_delays_the_news(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise OSError("away")

    scheduler = ready(Rows.numbered(1, error="x", concept=b""), store)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fail", away)
        scheduler.publish()
        assert scheduler.status(0).failed == 1
        assert not scheduler.status(0).events
        assert not scheduler.status(0).over
    scheduler.publish()
    assert scheduler.status(0).over
    assert store.failure("c0") is not None


def test_what_is_recognised_is_not_read_again(store: Store) -> None:
    """Files that were only touched: the result's key becomes the new one. Meanwhile they may have been others."""
    examples.finish(store, "c0")
    examples.fail(store, "c0", "image x: is truncated")
    scheduler = ready(Rows.numbered(1, done=True, concept=b""), store)
    status = scheduler.status(0)
    assert (status.over, status.skipped) == (True, 1)
    result = store.result("c0")
    assert result is not None
    assert (result.row_fingerprint, result.images_mtime_digest) == ("row 0", "stamp 0")
    assert store.failure("c0") is None


def test_an_unreadable_manifest_ends_the_job(store: Store) -> None:
    class Broken(Rows):
        def iter_rows(self, wanted: Collection[str]) -> Iterator[PreparedRow]:
            raise OSError("connection reset")

    scheduler = make(Broken.numbered(1), store)
    scheduler.read(retry_s=0.001)
    assert scheduler.status(0).problem == "reading the manifest failed: connection reset"
    assert scheduler.take("w", 1).over
    assert scheduler.beat("w", {}, 0).stop


def test_workers_that_never_start_end_the_job(store: Store) -> None:
    scheduler = ready(Rows.numbered(1), store)
    scheduler.failed_to_start("no such model")
    assert not scheduler.status(0).problem
    scheduler.failed_to_start("no such model")
    assert scheduler.status(0).problem == "no worker could start: no such model"


def test_one_bad_machine_of_many_does_not_end_the_job(store: Store) -> None:
    """The others may still load the model; when none of them is heard of for long, they don't."""
    clock = Clock()
    scheduler = ready(Rows.numbered(1), store, workers=16, clock=clock)
    for _ in range(5):
        scheduler.failed_to_start("CUDA error")
        clock.now += 100
        assert not scheduler.status(0).problem
    clock.now += 100
    scheduler.failed_to_start("CUDA error")
    assert scheduler.status(0).problem == "no worker could start: CUDA error"


def test_many_machines_that_all_fail_end_the_job_at_once(store: Store) -> None:
    scheduler = ready(Rows.numbered(1), store, workers=4)
    for _ in range(7):
        scheduler.failed_to_start("no diffusers")
        assert not scheduler.status(0).problem
    scheduler.failed_to_start("no diffusers")
    assert scheduler.status(0).problem == "no worker could start: no diffusers"


@pytest.mark.parametrize("how", ["leaves", "is lost"])
def test_the_only_worker_goes_and_none_can_take_its_place(store: Store, how: str) -> None:
    clock = Clock()
    scheduler = ready(Rows.numbered(1), store, clock=clock)
    scheduler.failed_to_start("once, before")
    scheduler.take("w", 1)
    if how == "leaves":
        scheduler.leave("w", "CUDA error")
    else:
        clock.now += 61
    scheduler.failed_to_start("CUDA error")
    assert not scheduler.status(0).problem
    scheduler.failed_to_start("CUDA error")
    assert scheduler.status(0).problem == "no worker could start: CUDA error"


@pytest.mark.parametrize(
    "begin",
    [
        lambda scheduler: scheduler.take("w", 1),
        lambda scheduler: scheduler.beat("w", {"c0": 0}, 0),
        lambda scheduler: scheduler.beat("w", {}, 5),
    ],
    ids=["asks for work", "before its first step", "learns"],
)
def test_a_worker_that_fails_to_start_later_is_no_problem(
    store: Store, begin: Callable[[Scheduler], object]
) -> None:
    scheduler = ready(Rows.numbered(1), store)
    assert not scheduler.status(0).begun
    begin(scheduler)
    assert scheduler.status(0).begun
    for _ in range(5):
        scheduler.failed_to_start("GPU is gone")
    assert not scheduler.status(0).problem


def test_stopping(store: Store) -> None:
    rows = Rows.numbered(50)
    scheduler = make(rows, store, ahead=4)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(scheduler.read)
        wait_for(lambda: rows.pulled == 4)
        assert ids(scheduler, "w", 1) == ["c0"]
        assert not scheduler.beat("w", {"c0": 1}, 1).stop
        scheduler.stop()
        reading.result(10)
    assert scheduler.beat("w", {"c0": 2}, 2).stop
    assert scheduler.take("v", 1).over
    assert rows.pulled <= 6, "it reads no more"


def test_reading_that_fails_begins_again_at_what_is_left(store: Store) -> None:
    class Resets(Rows):
        fails = 2

        def iter_rows(self, wanted: Collection[str]) -> Iterator[PreparedRow]:
            for row in super().iter_rows(wanted):
                yield row
                if row["concept_id"] == "c1" and self.fails:
                    self.fails -= 1
                    raise OSError("connection reset")

    rows = Resets.numbered(4)
    scheduler = make(rows, store)
    scheduler.read(retry_s=0.001)
    assert ids(scheduler, "w", 4) == ["c0", "c1", "c2", "c3"]
    assert rows.pulled == 4, "c0 and c1 were not read again"


def test_a_restarted_scheduler_finds_all_again(store: Store) -> None:
    """What is done and failed by the store, what is in work by the heartbeats, the rest by the manifest."""
    first = ready(Rows.numbered(6), store)
    assert len(ids(first, "w", 2)) == 2
    began = time.time()
    examples.finish(store, "c0", row_fingerprint="row 0", images_mtime_digest="stamp 0")
    examples.finish(store, "c1", row_fingerprint="of another configuration", images_mtime_digest="stamp 1")
    examples.fail(store, "c2", "not finite", time=began + 1)
    examples.fail(store, "c3", "of an earlier job", time=began - 100)
    cursor = first.status(0).cursor

    rows = Rows.numbered(6)
    scheduler = make(rows, store, began=began, was_restarted=True)
    assert not scheduler.beat("w", {"c4": 7}, 7).lost, "the worker keeps what it has"
    scheduler.read()
    assert (scheduler.status(0).failed, scheduler.status(0).running) == (1, 1)
    taken: list[str] = []
    scheduler.beat("w", {"c4": 8}, 8)
    scheduler.ack("w", "c4")
    while not (answer := scheduler.take("v", 9)).over:
        for lease in answer.leases:
            scheduler.ack("v", lease.concept_id)
            taken.append(lease.concept_id)
    assert sorted(taken) == ["c1", "c3", "c5"]
    assert rows.pulled == 4, "what is over was not prepared again"
    scheduler.publish()
    status = scheduler.status(cursor)
    assert (status.over, status.done, status.failed) == (True, 5, 1)
    assert {event.concept_id for event in status.events} == {f"c{index}" for index in range(6)}


def test_no_leases_to_a_node_that_is_about_to_go(store: Store) -> None:
    scheduler = ready(Rows.numbered(2), store)
    assert not scheduler.beat("w", {}, 0, "node-1").stop
    assert not scheduler.beat("v", {}, 0, "node-2").stop
    scheduler.drain({"node-1"})
    assert scheduler.beat("w", {}, 0, "node-1").stop
    assert not scheduler.beat("v", {}, 0, "node-2").stop
    answer = scheduler.take("w", 1)
    assert answer.over
    assert not answer.leases
    assert ids(scheduler, "v", 2)


def test_no_more_workers_are_wanted_for_what_others_learn(store: Store) -> None:
    """Until one of those is lost."""
    clock = Clock()
    scheduler = make(Rows.numbered(2), store, clock=clock)
    assert scheduler.wants_workers(), "more may come"
    scheduler.read()
    assert scheduler.wants_workers()
    scheduler.take("w", 2)
    assert not scheduler.wants_workers()
    answer = scheduler.take("v", 1)
    assert answer.no_pending
    assert not answer.over
    clock.now += 61
    scheduler.publish()
    assert scheduler.wants_workers()


def test_a_store_that_refuses_ends_the_job(store: Store) -> None:
    scheduler = ready(Rows.numbered(1), store)
    scheduler.halt("the output s3://b/x: access denied")
    assert scheduler.status(0).problem == "the output s3://b/x: access denied"
    assert scheduler.take("w", 1).over


def test_started_it_does_all_that_by_itself(store: Store) -> None:
    draining: set[str] = set()
    found = threading.Event()

    def find_draining() -> set[str]:
        if not found.is_set():
            found.set()
            raise OSError("Ray doesn't answer")  # it is asked again
        return draining

    scheduler = make(Rows.numbered(2), store, lease_timeout_s=0.5)
    scheduler.start(find_draining, tick_s=0.01)
    wait_for(lambda: scheduler.status(0).running == 2 or not ids(scheduler, "w", 2))
    scheduler.fail("w", "c0", "not finite")
    wait_for(lambda: scheduler.status(0).events)
    wait_for(lambda: not scheduler.status(0).running, message="a silent worker's lease doesn't expire")
    draining.add("node-1")
    wait_for(lambda: scheduler.beat("v", {}, 0, "node-1").stop)


# Questions that wait for something to say
