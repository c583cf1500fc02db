"""The feed: one actor that pulls prepared concepts out of Ray Data, a few ahead, and leases them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from textinv_ray.service.leases import Event, Lease, Leases
from textinv_ray.service.plan import Key
from textinv_ray.service.store import Store

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_STARTING_S = 180.0  # Workers that aren't there by then are not waited for when work is shared out.


class RowSource(Protocol):
    """What the feed reads: a `ray.data.Dataset`."""

    def iter_rows(self) -> Iterable[Mapping[str, Any]]:
        """Rows as service.prepare makes them."""


@dataclass(frozen=True)
class Answer:
    """To a worker that asked for work."""

    leases: tuple[Lease, ...]
    over: bool
    """There is nothing more for this worker, ever. Without leases and not over: ask again later."""


@dataclass(frozen=True)
class Orders:
    """To a worker's sign of life."""

    lost: tuple[str, ...]
    """Concepts that are no longer the worker's: drop them."""
    stop: bool
    """Write checkpoints and leave."""


@dataclass(frozen=True)
class Status:
    """Where the job stands."""

    done: int
    failed: int
    skipped: int
    running: int
    over: bool
    steps_computed: int
    steps_reached: int
    events: tuple[Event, ...]
    cursor: int
    """For the next call."""
    problem: str
    """Why the job can't go on; empty while it can."""


class Feed:
    """Leases over a stream of prepared concepts. All methods may be called from many threads."""

    def __init__(
        self,
        rows: RowSource,
        keys: Mapping[str, Key],
        output: str,
        *,
        ahead: int,
        workers: int = 1,
        lease_timeout_s: float,
        max_attempts: int,
    ) -> None:
        """`keys`: Plan.todo. `ahead`: how many prepared concepts may wait for a worker. `workers`: of the fleet."""
        self._rows = rows
        self._keys = keys
        self._store = Store(output)
        self._ahead = ahead
        self._workers = workers
        self._started = time.monotonic()
        self._max_attempts = max_attempts
        self._leases = Leases(lease_timeout_s, max_attempts)
        self._changed = threading.Condition()
        self._stopping = False
        self._problem = ""
        self._failed_starts = 0
        self._published = 0  # events up to here are in the store, so the driver may see them
        self._dropped = 0  # events up to here were seen and are forgotten
        for run in (self._read, self._keep):
            threading.Thread(target=run, name=f"feed{run.__name__}", daemon=True).start()

    # For workers

    def take(self, worker: str, count: int) -> Answer:
        """Leases up to `count` concepts."""
        is_starting = time.monotonic() - self._started < _STARTING_S
        expected = self._workers if is_starting else 1
        with self._changed:
            leases = [] if self._stopping or self._problem else self._leases.take(worker, count, expected)
            self._changed.notify_all()
            return Answer(tuple(leases), bool(self._stopping or self._problem or self._leases.over))

    def is_over(self) -> bool:
        """Whether there is nothing more for any worker."""
        with self._changed:
            return bool(self._stopping or self._problem or self._leases.over)

    def beat(self, worker: str, steps: Mapping[str, int], computed: int) -> Orders:
        """A sign of life: see Leases.beat."""
        with self._changed:
            lost = self._leases.beat(worker, steps, computed)
            return Orders(tuple(lost), bool(self._stopping or self._problem))

    def saved(self, worker: str, concept_id: str, step: int) -> None:
        """A checkpoint is in the store."""
        with self._changed:
            self._leases.saved(worker, concept_id, step)

    def ack(self, worker: str, concept_id: str) -> None:
        """A result is in the store."""
        with self._changed:
            self._leases.ack(worker, concept_id)
            self._changed.notify_all()

    def fail(self, worker: str, concept_id: str, error: str) -> None:
        """The concept can't be learned, and another try would not help."""
        with self._changed:
            self._leases.fail(worker, concept_id, error)
            self._changed.notify_all()

    def give_back(self, worker: str, concept_id: str) -> None:
        """The worker doesn't work on the concept (any more)."""
        with self._changed:
            self._leases.give_back(worker, concept_id)

    def leave(self, worker: str, error: str = "") -> None:
        """The worker goes; with an error, it was lost."""
        with self._changed:
            self._leases.leave(worker, error)
            self._changed.notify_all()

    def unable(self, error: str) -> None:
        """A worker could not even start. When that is all that ever happens, the job can't go on."""
        with self._changed:
            self._failed_starts += 1
            if self._failed_starts >= self._max_attempts and not self._leases.steps_computed:
                self._problem = f"no worker could start: {error}"

    # For the driver

    def status(self, cursor: int) -> Status:
        """Counts, and what happened since `cursor` (0 at first)."""
        with self._changed:
            table = self._leases
            seen = max(cursor, self._dropped)
            events = tuple(table.events[seen - self._dropped : self._published - self._dropped])
            del table.events[: seen - self._dropped]
            self._dropped = seen
            return Status(
                done=table.done,
                failed=table.failed,
                skipped=table.skipped,
                running=table.running,
                over=table.over and self._published == self._dropped + len(table.events),
                steps_computed=table.steps_computed,
                steps_reached=table.steps_reached,
                events=events,
                cursor=self._published,
                problem=self._problem,
            )

    def stop(self) -> None:
        """No more leases; workers are told to write checkpoints and leave."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    # Threads

    def _read(self) -> None:
        """Pulls rows while fewer than `ahead` wait; Ray Data holds back what isn't pulled."""
        try:
            for row in self._rows.iter_rows():
                concept_id, steps = row["concept_id"], row["steps"]
                if row["done"]:
                    self._recognise(concept_id)
                    with self._changed:
                        self._leases.skip(steps)
                    continue
                stamp = self._keys[concept_id].images_stamp
                payload = None if row["error"] else ray.put((row["concept"], stamp))
                with self._changed:
                    self._leases.offer(concept_id, payload, steps)
                    if row["error"]:
                        self._leases.give_up(concept_id, row["error"])
                    while self._leases.waiting >= self._ahead and not self._stopping:
                        self._changed.wait()
                    if self._stopping:
                        return
            with self._changed:
                self._leases.close()
        except Exception as error:
            logger.exception("reading the manifest failed")
            with self._changed:
                self._problem = f"reading the manifest failed: {error}"

    def _recognise(self, concept_id: str) -> None:
        """Pictures that were touched or moved, but are the same: next time they needn't be read."""
        result = self._store.result(concept_id)
        if result:
            self._store.amend(concept_id, {**result, **self._keys[concept_id]._asdict()})

    def _keep(self) -> None:
        """Takes expired leases, and writes failures to the store before anyone hears of them."""
        while True:
            with self._changed:
                self._leases.expire()
                news = self._leases.events[self._published - self._dropped :]
            try:
                for event in news:
                    if event.kind == "failed":
                        self._store.fail(event.concept_id, {"error": event.error, "time": time.time()})
                with self._changed:
                    self._published += len(news)
            except Exception:
                logger.exception("the store refused a failure's record; trying again")
            time.sleep(_TICK_S)
