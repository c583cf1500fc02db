"""The scheduler: reads ahead a little, records failures before anyone hears of them, knows when it can't go on."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import examples
from tests.support.rows import Rows
from tests.support.waiting import wait_for
from textinv_ray.service.scheduling import scheduler as schedulers
from textinv_ray.service.scheduling.protocol import PreparedConcept, PreparedRow
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(schedulers.ray, "put", lambda payload: payload)
    monkeypatch.setattr(schedulers, "_TICK_S", 0.02)
    monkeypatch.setattr(schedulers, "_DRAIN_TICK_S", 0.02)
    monkeypatch.setattr(schedulers, "_READ_WAIT_S", 0.02)
    return Store(str(tmp_path))


def make(rows: Rows, store: Store, ahead: int = 4, lease_timeout_s: float = 60, **options: Any) -> Scheduler:
    keys = {f"c{index}": Key(f"row {index}", f"stamp {index}") for index in range(100)}
    return Scheduler(
        rows, keys, store.uri, ahead=ahead, lease_timeout_s=lease_timeout_s, max_attempts=2, **options
    )


def test_reads_only_a_little_ahead(store: Store) -> None:
    rows = Rows.numbered(50)
    scheduler = make(rows, store, ahead=4)
    wait_for(lambda: rows.pulled == 4)
    time.sleep(0.1)
    assert rows.pulled == 4
    assert len(scheduler.take("w", 3).leases) == 3
    wait_for(lambda: rows.pulled == 7)


def test_the_payload_is_concept_and_stamp(store: Store) -> None:
    scheduler = make(Rows.numbered(1), store)
    wait_for(lambda: scheduler.take("w", 1).leases or scheduler.status(0).running)
    scheduler.leave("w")
    (lease,) = scheduler.take("w", 1).leases
    assert lease.payload == PreparedConcept(b"x", "stamp 0")


def test_to_the_end(store: Store) -> None:
    scheduler = make(Rows.numbered(3), store)
    seen: list[str] = []
    while not (answer := scheduler.take("w", 2)).over:
        for lease in answer.leases:
            scheduler.ack("w", lease.concept_id)
            seen.append(lease.concept_id)
    assert seen == ["c0", "c1", "c2"]
    wait_for(lambda: scheduler.status(0).over)
    assert [event.concept_id for event in scheduler.status(0).events] == seen


def test_events_are_told_once(store: Store) -> None:
    scheduler = make(Rows.numbered(2), store)
    wait_for(lambda: scheduler.take("w", 2).leases or scheduler.status(0).running)
    scheduler.saved("w", "c0", 3)
    wait_for(lambda: scheduler.status(0).events)
    first = scheduler.status(0)
    scheduler.ack("w", "c0")
    wait_for(lambda: scheduler.status(first.cursor).events)
    second = scheduler.status(first.cursor)
    assert [[event.kind for event in status.events] for status in (first, second)] == [["saved"], ["done"]]
    assert scheduler.status(second.cursor).events == ()


def test_images_that_failed_are_in_the_store_when_heard_of(store: Store) -> None:
    scheduler = make(Rows.numbered(2, error="image x: is truncated", concept=b""), store)
    wait_for(lambda: scheduler.status(0).events)
    failure = store.failure(scheduler.status(0).events[0].concept_id)
    assert failure is not None
    assert failure.error == "image x: is truncated"
    wait_for(lambda: scheduler.status(0).over)


def test_a_store_that_is_away_delays_the_news(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fail", lambda *_: (_ for _ in ()).throw(OSError("away")))
        scheduler = make(Rows.numbered(1, error="x", concept=b""), store)
        wait_for(lambda: scheduler.status(0).failed)
        time.sleep(0.1)
        assert not scheduler.status(0).events
        assert not scheduler.status(0).over
    wait_for(lambda: scheduler.status(0).over)
    assert store.failure("c0") is not None


def test_what_is_recognised_is_not_read_again(store: Store) -> None:
    """Files that were only touched: the result's key becomes the new one."""
    examples.finish(store, "c0")
    scheduler = make(Rows.numbered(1, done=True, concept=b""), store)
    wait_for(lambda: scheduler.status(0).over)
    assert scheduler.status(0).skipped == 1
    result = store.result("c0")
    assert result is not None
    assert (result.row_fingerprint, result.images_mtime_digest) == ("row 0", "stamp 0")


def test_an_unreadable_manifest_ends_the_job(store: Store) -> None:
    class Broken(Rows):
        def iter_rows(self, wanted: Collection[str]) -> Iterator[PreparedRow]:
            raise OSError("connection reset")

    scheduler = make(Broken.numbered(1), store)
    wait_for(lambda: scheduler.status(0).problem)
    assert scheduler.status(0).problem == "reading the manifest failed: connection reset"
    assert scheduler.take("w", 1).over
    assert scheduler.beat("w", {}, 0).stop


def test_workers_that_never_start_end_the_job(store: Store) -> None:
    scheduler = make(Rows.numbered(1), store)
    scheduler.failed_to_start("no such model")
    assert not scheduler.status(0).problem
    scheduler.failed_to_start("no such model")
    assert scheduler.status(0).problem == "no worker could start: no such model"


def test_a_worker_that_fails_to_start_later_is_no_problem(store: Store) -> None:
    scheduler = make(Rows.numbered(1), store)
    scheduler.beat("w", {}, 5)
    for _ in range(5):
        scheduler.failed_to_start("GPU is gone")
    assert not scheduler.status(0).problem


def test_stopping(store: Store) -> None:
    rows = Rows.numbered(50)
    scheduler = make(rows, store)
    wait_for(lambda: scheduler.take("w", 1).leases or scheduler.status(0).running)
    assert not scheduler.beat("w", {"c0": 1}, 1).stop
    scheduler.stop()
    assert scheduler.beat("w", {"c0": 2}, 2).stop
    assert scheduler.take("v", 1).over
    pulled = rows.pulled
    time.sleep(0.1)
    assert rows.pulled <= pulled + 1


def test_silent_workers_are_noticed_without_others_asking(store: Store) -> None:
    scheduler = make(Rows.numbered(1), store, lease_timeout_s=0.2)
    wait_for(lambda: scheduler.take("w", 1).leases or scheduler.status(0).running)
    wait_for(lambda: not scheduler.status(0).running)


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
    scheduler = make(rows, store, ahead=16)
    wait_for(lambda: len(scheduler.take("w", 4).leases) == 4 or scheduler.status(0).running == 4)
    assert rows.pulled == 4, "c0 and c1 were not read again"
    for index in range(4):
        scheduler.ack("w", f"c{index}")
    wait_for(lambda: scheduler.status(0).over)
    assert scheduler.status(0).done == 4


def test_a_restarted_scheduler_finds_all_again(store: Store) -> None:
    """What is done and failed by the store, what is in work by the heartbeats, the rest by the manifest."""
    first = make(Rows.numbered(6), store, ahead=16)
    wait_for(lambda: len(first.take("w", 2).leases) == 2 or first.status(0).running == 2)
    began = time.time()
    examples.finish(store, "c0", row_fingerprint="row 0", images_mtime_digest="stamp 0")
    examples.finish(store, "c1", row_fingerprint="of another configuration", images_mtime_digest="stamp 1")
    examples.fail(store, "c2", "not finite", time=began + 1)
    examples.fail(store, "c3", "of an earlier job", time=began - 100)
    cursor = first.status(0).cursor

    rows = Rows.numbered(6)
    scheduler = make(rows, store, ahead=16, began=began, was_restarted=lambda: True)
    wait_for(lambda: scheduler.status(0).failed == 1)
    assert not scheduler.beat("w", {"c4": 7}, 7).lost, "the worker keeps what it has"
    wait_for(lambda: scheduler.status(0).running == 1)
    taken: list[str] = []
    scheduler.beat("w", {"c4": 8}, 8)
    scheduler.ack("w", "c4")
    while not (answer := scheduler.take("v", 9)).over:
        for lease in answer.leases:
            scheduler.ack("v", lease.concept_id)
            taken.append(lease.concept_id)
    assert sorted(taken) == ["c1", "c3", "c5"]
    assert rows.pulled == 4, "what is over was not prepared again"
    wait_for(lambda: scheduler.status(0).over)
    status = scheduler.status(cursor)
    assert (status.done, status.failed) == (5, 1)
    assert {event.concept_id for event in status.events} == {f"c{index}" for index in range(6)}


def test_no_leases_to_a_node_that_is_about_to_go(store: Store) -> None:
    draining: set[str] = set()
    scheduler = make(Rows.numbered(2), store, find_draining=lambda: draining)
    assert not scheduler.beat("w", {}, 0, "node-1").stop
    assert not scheduler.beat("v", {}, 0, "node-2").stop
    draining.add("node-1")
    wait_for(lambda: scheduler.beat("w", {}, 0, "node-1").stop)
    assert not scheduler.beat("v", {}, 0, "node-2").stop
    answer = scheduler.take("w", 1)
    assert answer.over
    assert not answer.leases
    wait_for(lambda: scheduler.take("v", 2).leases)


def test_the_tail(store: Store) -> None:
    """Nothing is left but what others learn: more workers aren't wanted, until one of those is lost."""
    scheduler = make(Rows.numbered(2), store, lease_timeout_s=0.3)
    assert scheduler.wants_workers()
    wait_for(lambda: len(scheduler.take("w", 2).leases) == 2 or scheduler.status(0).running == 2)
    wait_for(lambda: not scheduler.wants_workers())
    answer = scheduler.take("v", 1)
    assert answer.no_pending
    assert not answer.over
    wait_for(scheduler.wants_workers)


def test_a_store_that_refuses_ends_the_job(store: Store) -> None:
    scheduler = make(Rows.numbered(1), store)
    scheduler.halt("the output s3://b/x: access denied")
    assert scheduler.status(0).problem == "the output s3://b/x: access denied"
    assert scheduler.take("w", 1).over
