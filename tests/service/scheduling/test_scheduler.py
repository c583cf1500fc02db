"""The feed: reads ahead a little, records failures before anyone hears of them, knows when it can't go on."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import examples
from tests.support.rows import Rows
from tests.support.waiting import wait_for
from textinv_ray.service.scheduling import scheduler as feeds
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(feeds.ray, "put", lambda payload: payload)
    monkeypatch.setattr(feeds, "_TICK_S", 0.02)
    monkeypatch.setattr(feeds, "_DRAIN_TICK_S", 0.02)
    monkeypatch.setattr(feeds, "_READ_WAIT_S", 0.02)
    return Store(str(tmp_path))


def make(rows: Rows, store: Store, ahead: int = 4, lease_timeout_s: float = 60, **options: Any) -> Scheduler:
    keys = {f"c{index}": Key(f"row {index}", f"stamp {index}") for index in range(100)}
    return Scheduler(
        rows, keys, store.uri, ahead=ahead, lease_timeout_s=lease_timeout_s, max_attempts=2, **options
    )


def test_reads_only_a_little_ahead(store: Store) -> None:
    rows = Rows.numbered(50)
    feed = make(rows, store, ahead=4)
    wait_for(lambda: rows.pulled == 4)
    time.sleep(0.1)
    assert rows.pulled == 4
    assert len(feed.take("w", 3).leases) == 3
    wait_for(lambda: rows.pulled == 7)


def test_the_payload_is_concept_and_stamp(store: Store) -> None:
    feed = make(Rows.numbered(1), store)
    wait_for(lambda: feed.take("w", 1).leases or feed.status(0).running)
    feed.leave("w")
    (lease,) = feed.take("w", 1).leases
    assert lease.payload == (b"x", "stamp 0")


def test_to_the_end(store: Store) -> None:
    feed = make(Rows.numbered(3), store)
    seen: list[str] = []
    while not (answer := feed.take("w", 2)).over:
        for lease in answer.leases:
            feed.ack("w", lease.concept_id)
            seen.append(lease.concept_id)
    assert seen == ["c0", "c1", "c2"]
    wait_for(lambda: feed.status(0).over)
    assert [event.concept_id for event in feed.status(0).events] == seen


def test_events_are_told_once(store: Store) -> None:
    feed = make(Rows.numbered(2), store)
    wait_for(lambda: feed.take("w", 2).leases or feed.status(0).running)
    feed.saved("w", "c0", 3)
    wait_for(lambda: feed.status(0).events)
    first = feed.status(0)
    feed.ack("w", "c0")
    wait_for(lambda: feed.status(first.cursor).events)
    second = feed.status(first.cursor)
    assert [[event.kind for event in status.events] for status in (first, second)] == [["saved"], ["done"]]
    assert feed.status(second.cursor).events == ()


def test_images_that_failed_are_in_the_store_when_heard_of(store: Store) -> None:
    feed = make(Rows.numbered(2, error="image x: is truncated", concept=b""), store)
    wait_for(lambda: feed.status(0).events)
    failure = store.failure(feed.status(0).events[0].concept_id)
    assert failure is not None
    assert failure["error"] == "image x: is truncated"
    wait_for(lambda: feed.status(0).over)


def test_a_store_that_is_away_delays_the_news(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fail", lambda *_: (_ for _ in ()).throw(OSError("away")))
        feed = make(Rows.numbered(1, error="x", concept=b""), store)
        wait_for(lambda: feed.status(0).failed)
        time.sleep(0.1)
        assert not feed.status(0).events
        assert not feed.status(0).over
    wait_for(lambda: feed.status(0).over)
    assert store.failure("c0") is not None


def test_what_is_recognised_is_not_read_again(store: Store) -> None:
    """Files that were only touched: the result's key becomes the new one."""
    examples.finish(store, "c0")
    feed = make(Rows.numbered(1, done=True, concept=b""), store)
    wait_for(lambda: feed.status(0).over)
    assert feed.status(0).skipped == 1
    result = store.result("c0")
    assert result is not None
    assert (result["row_fingerprint"], result["images_mtime_digest"]) == ("row 0", "stamp 0")


def test_an_unreadable_manifest_ends_the_job(store: Store) -> None:
    class Broken(Rows):
        def iter_rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
            raise OSError("connection reset")

    feed = make(Broken.numbered(1), store)
    wait_for(lambda: feed.status(0).problem)
    assert feed.status(0).problem == "reading the manifest failed: connection reset"
    assert feed.take("w", 1).over
    assert feed.beat("w", {}, 0).stop


def test_workers_that_never_start_end_the_job(store: Store) -> None:
    feed = make(Rows.numbered(1), store)
    feed.failed_to_start("no such model")
    assert not feed.status(0).problem
    feed.failed_to_start("no such model")
    assert feed.status(0).problem == "no worker could start: no such model"


def test_a_worker_that_fails_to_start_later_is_no_problem(store: Store) -> None:
    feed = make(Rows.numbered(1), store)
    feed.beat("w", {}, 5)
    for _ in range(5):
        feed.failed_to_start("GPU is gone")
    assert not feed.status(0).problem


def test_stopping(store: Store) -> None:
    rows = Rows.numbered(50)
    feed = make(rows, store)
    wait_for(lambda: feed.take("w", 1).leases or feed.status(0).running)
    assert not feed.beat("w", {"c0": 1}, 1).stop
    feed.stop()
    assert feed.beat("w", {"c0": 2}, 2).stop
    assert feed.take("v", 1).over
    pulled = rows.pulled
    time.sleep(0.1)
    assert rows.pulled <= pulled + 1


def test_silent_workers_are_noticed_without_others_asking(store: Store) -> None:
    feed = make(Rows.numbered(1), store, lease_timeout_s=0.2)
    wait_for(lambda: feed.take("w", 1).leases or feed.status(0).running)
    wait_for(lambda: not feed.status(0).running)


def test_reading_that_fails_begins_again_at_what_is_left(store: Store) -> None:
    class Resets(Rows):
        fails = 2

        def iter_rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
            for row in super().iter_rows(wanted):
                yield row
                if row["concept_id"] == "c1" and self.fails:
                    self.fails -= 1
                    raise OSError("connection reset")

    rows = Resets.numbered(4)
    feed = make(rows, store, ahead=16)
    wait_for(lambda: len(feed.take("w", 4).leases) == 4 or feed.status(0).running == 4)
    assert rows.pulled == 4, "c0 and c1 were not read again"
    for index in range(4):
        feed.ack("w", f"c{index}")
    wait_for(lambda: feed.status(0).over)
    assert feed.status(0).done == 4


def test_a_restarted_feed_finds_all_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done and failed by the store, what is in work by the heartbeats, the rest by the manifest."""
    first = make(Rows.numbered(6), store, ahead=16)
    wait_for(lambda: len(first.take("w", 2).leases) == 2 or first.status(0).running == 2)
    began = time.time()
    examples.finish(store, "c0", row_fingerprint="row 0", images_mtime_digest="stamp 0")
    examples.finish(store, "c1", row_fingerprint="of another configuration", images_mtime_digest="stamp 1")
    store.fail("c2", {"error": "not finite", "time": began + 1})
    store.fail("c3", {"error": "of an earlier job", "time": began - 100})
    cursor = first.status(0).cursor

    monkeypatch.setattr(feeds, "_was_restarted", lambda: True)
    rows = Rows.numbered(6)
    feed = make(rows, store, ahead=16, began=began)
    wait_for(lambda: feed.status(0).failed == 1)
    assert not feed.beat("w", {"c4": 7}, 7).lost, "the worker keeps what it has"
    wait_for(lambda: feed.status(0).running == 1)
    taken: list[str] = []
    feed.beat("w", {"c4": 8}, 8)
    feed.ack("w", "c4")
    while not (answer := feed.take("v", 9)).over:
        for lease in answer.leases:
            feed.ack("v", lease.concept_id)
            taken.append(lease.concept_id)
    assert sorted(taken) == ["c1", "c3", "c5"]
    assert rows.pulled == 4, "what is over was not prepared again"
    wait_for(lambda: feed.status(0).over)
    status = feed.status(cursor)
    assert (status.done, status.failed) == (5, 1)
    assert {event.concept_id for event in status.events} == {f"c{index}" for index in range(6)}


def test_no_leases_to_a_node_that_is_about_to_go(store: Store) -> None:
    draining: set[str] = set()
    feed = make(Rows.numbered(2), store, find_draining=lambda: draining)
    assert not feed.beat("w", {}, 0, "node-1").stop
    assert not feed.beat("v", {}, 0, "node-2").stop
    draining.add("node-1")
    wait_for(lambda: feed.beat("w", {}, 0, "node-1").stop)
    assert not feed.beat("v", {}, 0, "node-2").stop
    answer = feed.take("w", 1)
    assert answer.over
    assert not answer.leases
    wait_for(lambda: feed.take("v", 2).leases)


def test_the_tail(store: Store) -> None:
    """Nothing is left but what others learn: more workers aren't wanted, until one of those is lost."""
    feed = make(Rows.numbered(2), store, lease_timeout_s=0.3)
    assert feed.wants_workers()
    wait_for(lambda: len(feed.take("w", 2).leases) == 2 or feed.status(0).running == 2)
    wait_for(lambda: not feed.wants_workers())
    answer = feed.take("v", 1)
    assert answer.no_pending
    assert not answer.over
    wait_for(feed.wants_workers)


def test_a_store_that_refuses_ends_the_job(store: Store) -> None:
    feed = make(Rows.numbered(1), store)
    feed.halt("the output s3://b/x: access denied")
    assert feed.status(0).problem == "the output s3://b/x: access denied"
    assert feed.take("w", 1).over
