"""The scheduler: pulls prepared concepts from their source, a few ahead, and leases them to workers. No Ray in here.

Its state can be rebuilt. When its process dies and another one takes its place, that learns from the store what is
over, from the manifest what is left, and from the workers' heartbeats what they hold.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from textinv_ray.service.scheduling.leases import Event, Lease, Leases
from textinv_ray.service.scheduling.protocol import (
    Answer,
    Asked,
    Orders,
    Pending,
    PreparedConcept,
    RowSource,
    SchedulerStatus,
)
from textinv_ray.service.scheduling.report import Report
from textinv_ray.service.scheduling.stored import Stored
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.keys import Key
from textinv_ray.util.errors import UserError
from textinv_ray.util.logs import about
from textinv_ray.util.redact import message

logger = logging.getLogger(__name__)

_READ_TRIES = 6  # in a row, with nothing read in between
_STARTING_S = 180.0  # Workers that aren't there by then are not waited for when work is shared out.
_LOADING_S = 600.0  # So long others may load a model while one fails again and again.


class Scheduler:
    """Leases over a stream of prepared concepts. All methods may be called from many threads.

    It does nothing by itself until `start`: concepts come by `read`, leases expire and events appear by `publish`.
    """

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
        began: float = 0.0,
        was_restarted: bool = False,
        keep: Callable[[PreparedConcept], Any] = lambda prepared: prepared,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keys`: Plan.todo. `ahead`: how many prepared concepts may wait for a worker. `workers`: of the fleet.

        `began`: when the job did, in seconds since 1970; failures in the store since then are this job's.
        `was_restarted`: whether it takes the place of a scheduler that died. `keep`: makes of a concept what goes
        into its leases. `clock`: in seconds.
        """
        self._rows = rows
        self._keys = keys
        self._stored = Stored(output, keys, began)
        self._was_restarted = was_restarted
        self._keep = keep
        self._clock = clock
        self._draining: Collection[str] = ()
        self._nodes: dict[str, str] = {}
        self._ahead = ahead
        self._workers = workers
        self._started = clock()
        self._max_attempts = max_attempts
        self._leases = Leases(lease_timeout_s, max_attempts, clock)
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # Apart from it, for those of whom there may be a thousand: what concerns all who have nothing to do, and all
        self._more_work = threading.Condition(lock)
        self._told_to_leave = threading.Condition(lock)
        self._stopping = False
        self._problem = ""
        self._failed_starts: list[float] = []
        """When workers could not start, since one was heard of."""
        self._report = Report()
        # Event numbers start above any cursor that this scheduler's predecessor can have given out.
        self._published = time.time_ns()  # events up to here are in the store, so the driver may see them
        self._dropped = self._published  # events up to here were seen and are forgotten

    def start(self, find_draining: Callable[[], Collection[str]] = lambda: (), tick_s: float = 0.5) -> None:
        """Reads, publishes and watches the nodes from threads of its own, for as long as the process lives.

        `find_draining`: ids of the cluster's nodes that are about to go. `tick_s`: seconds between two rounds of
        publishing; nodes are looked at, and reading is tried again after an error, in four times that.
        """

        def repeat(action: Callable[[], None], every_s: float) -> None:
            while True:
                try:
                    action()
                except Exception:
                    logger.exception("the scheduler goes on after an error")
                time.sleep(every_s)

        def watch() -> None:
            self.drain(find_draining())

        threads = {
            "read": lambda: self.read(retry_s=4 * tick_s),
            "publish": lambda: repeat(self.publish, tick_s),
            "nodes": lambda: repeat(watch, 4 * tick_s),
        }
        for name, run in threads.items():
            threading.Thread(target=run, name=f"scheduler-{name}", daemon=True).start()

    # For workers

    def take(self, worker: str, count: int, shape: str = "") -> Answer:
        """Leases up to `count` concepts of one shape: of `shape`, unless that is empty."""
        is_starting = self._clock() - self._started < _STARTING_S
        expected = self._workers if is_starting else 1
        with self._changed:
            self._failed_starts.clear()
            over = self._is_stopped or self._leases.over or self._nodes.get(worker) in self._draining
            leases = [] if over else self._leases.take(worker, count, expected, shape)
            self._changed.notify_all()
            waiting = self._leases.waiting_of(shape)
            return Answer(tuple(leases), over, self._leases.no_pending, waiting, shape)

    def wait_for_work(self, waiting: int, no_pending: bool, wait_s: float, shape: str = "") -> bool:
        """Waits until `take` may have more, or something else, to say than it had with these; False: it hasn't."""

        def is_news() -> bool:
            table = self._leases
            ended = self._is_stopped or table.over
            return ended or table.waiting_of(shape) > waiting or table.no_pending != no_pending

        with self._changed:
            return self._more_work.wait_for(is_news, wait_s)

    def more(self, answer: Answer) -> Pending[bool]:
        """See SchedulerInterface."""
        return Asked(partial(self.wait_for_work, answer.waiting, answer.no_pending, shape=answer.shape))

    def fetch(self, lease: Lease) -> PreparedConcept:
        """The concept of a lease, if concepts are kept in leases as they are."""
        prepared: PreparedConcept = lease.payload
        return prepared

    def is_over(self) -> bool:
        """Whether there is nothing more for any worker."""
        with self._changed:
            return self._is_stopped or self._leases.over

    def wants_workers(self) -> bool:
        """Whether there is something that nobody has taken, or more may come."""
        with self._changed:
            return not self._is_stopped and not self._leases.no_pending

    def beat(self, worker: str, steps: Mapping[str, int], computed: int, node: str = "") -> Orders:
        """A heartbeat: see Leases.beat. `node`: id of the worker's node."""
        with self._changed:
            self._failed_starts.clear()
            self._nodes[worker] = node
            lost = self._leases.beat(worker, steps, computed)
            return Orders(tuple(lost), self._is_leaving(node))

    def must_leave(self, node: str, wait_s: float) -> bool:
        """Waits until workers on this node must leave; False: they needn't yet."""
        with self._changed:
            return self._told_to_leave.wait_for(lambda: self._is_leaving(node), wait_s)

    def notice(self, node: str) -> Pending[bool]:
        """See SchedulerInterface."""
        return Asked(partial(self.must_leave, node))

    def _is_leaving(self, node: str) -> bool:
        return self._is_stopped or (bool(node) and node in self._draining)

    @property
    def _is_stopped(self) -> bool:
        return bool(self._stopping or self._problem)

    def may_write(self, worker: str, concept_id: str) -> bool:
        """Whether a result or checkpoint of the worker is wanted: it may have lost the concept while it was silent."""
        with self._changed:
            return self._leases.may_write(worker, concept_id)

    def saved(self, worker: str, concept_id: str, step: int) -> None:
        """A checkpoint is in the store."""
        with self._changed:
            self._leases.saved(worker, concept_id, step)

    def ack(self, worker: str, concept_id: str) -> None:
        """A result is in the store."""
        with self._changed:
            self._leases.ack(worker, concept_id)
            self._notify()

    def fail(self, worker: str, concept_id: str, error: str) -> None:
        """The concept can't be learned, and another attempt would not help."""
        with self._changed:
            self._leases.fail(worker, concept_id, message(error))
            self._notify()

    def give_back(self, worker: str, concept_id: str) -> None:
        """The worker doesn't work on the concept (any more)."""
        with self._changed:
            self._leases.give_back(worker, concept_id)
            self._notify()

    def leave(self, worker: str, error: str = "", computed: int = 0) -> None:
        """The worker goes. See Leases.leave."""
        with self._changed:
            self._leases.leave(worker, message(error), computed)
            self._nodes.pop(worker, None)
            self._notify()

    def halt(self, problem: str) -> None:
        """The job can't go on, whatever workers do. Only the first problem is kept."""
        with self._changed:
            self._problem = self._problem or message(problem)
            self._notify()

    def failed_to_start(self, error: str) -> None:
        """A worker could not start. Where that happens again and again and there is no other, the job can't go on.

        Again and again: `max_attempts` times for each worker of the fleet, or `max_attempts` times in ten minutes, in
        which others would have loaded the model.
        """
        with self._changed:
            self._leases.expire()
            if self._leases.workers:
                self._failed_starts.clear()
                return
            failures = self._failed_starts
            failures.append(self._clock())
            are_all = len(failures) >= self._max_attempts * self._workers
            is_long = failures[-1] - failures[0] >= _LOADING_S and len(failures) >= self._max_attempts
            if are_all or is_long:
                self._problem = self._problem or f"no worker could start: {message(error)}"
                self._notify()

    # For the driver

    def status(self, cursor: int, wait_s: float = 0.0) -> SchedulerStatus:
        """Counts, and the events since `cursor` (0 at first). Those before it are forgotten.

        `wait_s`: for how long it may wait for events, the job's end, or the end of the last lease after `stop`.
        """

        def is_news() -> bool:
            ended = self._is_told_over or self._problem or (self._stopping and not self._leases.running)
            return bool(ended) or self._published > max(cursor, self._dropped)

        with self._changed:
            self._changed.wait_for(is_news, wait_s)
            table = self._leases
            seen = max(cursor, self._dropped)
            events = tuple(table.events[seen - self._dropped : self._published - self._dropped])
            del table.events[: seen - self._dropped]
            self._dropped = seen
            return SchedulerStatus(
                begun=table.begun,
                done=table.done,
                failed=table.failed,
                skipped=table.skipped,
                running=table.running,
                over=self._is_told_over,
                steps_computed=table.steps_computed,
                steps_reached=table.steps_reached,
                steps_redone=table.steps_redone,
                events=events,
                cursor=self._published,
                problem=self._problem,
            )

    @property
    def _is_told_over(self) -> bool:
        """Whether all is over and every event about it is published."""
        return self._leases.over and self._published == self._dropped + len(self._leases.events)

    def stop(self) -> None:
        """No more leases; workers are told to write checkpoints and leave."""
        with self._changed:
            self._stopping = True
            self._notify()

    def _notify(self) -> None:
        """Something has changed: those look who wait for it."""
        self._changed.notify_all()
        self._more_work.notify_all()
        if self._is_stopped:
            self._told_to_leave.notify_all()

    # By itself

    def read(self, retry_s: float = 2.0) -> None:
        """Offers everything that is left to learn, a few concepts ahead of the workers. Returns when all is offered.

        When reading fails it goes on at what is left, after `retry_s` seconds at first, twice as long each time.
        """
        try:
            if self._was_restarted:
                self._recover()
            failures = 0
            while True:
                left = self._keys.keys() - self._leases.known
                try:
                    self._read_rows(left)
                    return
                except (StoreError, UserError):  # which another try would not change
                    raise
                except Exception:
                    progress = len(self._keys.keys() - self._leases.known) < len(left)
                    failures = 1 if progress else failures + 1
                    if failures >= _READ_TRIES:
                        raise
                    logger.exception("reading the manifest failed; trying again")
                    time.sleep(retry_s * 2 ** (failures - 1))
        except Exception as error:
            logger.exception("reading the manifest failed")
            self.halt(
                str(error)
                if isinstance(error, StoreError | UserError)
                else f"reading the manifest failed: {error}"
            )

    def _read_rows(self, wanted: Collection[str]) -> None:
        """Pulls rows while fewer than `ahead` concepts wait; the source holds back what isn't pulled."""
        for row in self._rows.iter_rows(wanted):
            concept_id, steps = row["concept_id"], row["steps"]
            if row["done"]:
                self._stored.recognise(concept_id)
                with self._changed:
                    self._leases.skip(concept_id, steps)
                continue
            prepared = PreparedConcept(row["concept"], self._keys[concept_id].images_mtime_digest)
            payload = None if row["error"] else self._keep(prepared)
            with self._changed:
                self._leases.offer(concept_id, payload, steps, row["shape"])
                if row["error"]:
                    self._leases.give_up(concept_id, message(row["error"]))
                self._more_work.notify_all()
                while self._leases.waiting >= self._ahead and not self._is_stopped:
                    self._changed.wait()
                if self._is_stopped:
                    return
        with self._changed:
            self._leases.close()
            self._notify()

    def _recover(self) -> None:
        """Learns from the store which concepts of this job are over."""
        done, failures = self._stored.done(), self._stored.failures()
        logger.warning(
            "this scheduler was restarted: %d concepts are done, %d failed", len(done), len(failures)
        )
        with self._changed:
            for concept_id in done:
                self._leases.conclude(concept_id)
            for failure in failures:
                self._leases.give_up(failure.concept_id, failure.error, quarantined=failure.quarantined)

    def publish(self) -> None:
        """Ends expired leases, and lets `status` show what happened: failures once their record is in the store."""
        with self._changed:
            waiting = self._leases.waiting
            self._leases.expire()
            if self._leases.waiting != waiting:
                self._notify()
            self._report(self._leases, len(self._keys))
            news = self._leases.events[self._published - self._dropped :]
        for event in news:
            with about(event.concept_id):
                if event.kind == "failed" and not self._record(event):
                    break
            with self._changed:
                self._published += 1
                self._changed.notify_all()

    def drain(self, nodes: Collection[str]) -> None:
        """Workers on these nodes get nothing more and are told to leave: the nodes are about to go."""
        with self._changed:
            self._draining = nodes
            if nodes:
                self._told_to_leave.notify_all()

    def _record(self, event: Event) -> bool:
        """Whether a failure's record is in the store."""
        try:
            self._stored.fail(event)
            return True
        except Exception as error:
            logger.exception("the store refused a failure's record")
            if isinstance(error, StoreError) and error.is_permanent:
                self.halt(str(error))
            return False
