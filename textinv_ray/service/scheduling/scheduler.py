"""The scheduler: one actor that pulls prepared concepts out of Ray Data, a few ahead, and leases them to workers.

Its state can be rebuilt. When its process dies, Ray restarts it, and it learns from the store what is over, from
the manifest what is left, and from the workers' heartbeats what they hold.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping

import ray

from textinv_ray.service.scheduling.leases import Event, Lease, Leases
from textinv_ray.service.scheduling.protocol import (
    Answer,
    Orders,
    PreparedConcept,
    RowSource,
    SchedulerStatus,
)
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.records import Failure, Result
from textinv_ray.service.store.store import Store, StoreError

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_DRAIN_TICK_S = 2.0
_READ_TRIES = 6  # in a row, with nothing read in between
_READ_WAIT_S = 2.0  # after the first; twice as long after each of the next
_STARTING_S = 180.0  # Workers that aren't there by then are not waited for when work is shared out.


class Scheduler:
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
        began: float = 0.0,
        find_draining: Callable[[], Collection[str]] = lambda: (),
        was_restarted: Callable[[], bool] = lambda: False,
    ) -> None:
        """`keys`: Plan.todo. `ahead`: how many prepared concepts may wait for a worker. `workers`: of the fleet.

        `began`: when the job did, in seconds since 1970; failures in the store since then are this job's.
        `find_draining`: ids of the cluster's nodes that are about to go. `was_restarted`: whether this process takes
        the place of a scheduler that died.
        """
        self._rows = rows
        self._keys = keys
        self._store = Store(output)
        self._began = began
        self._is_new = not was_restarted()
        self._find_draining = find_draining
        self._draining: Collection[str] = ()
        self._nodes: dict[str, str] = {}
        self._ahead = ahead
        self._workers = workers
        self._started = time.monotonic()
        self._max_attempts = max_attempts
        self._leases = Leases(lease_timeout_s, max_attempts)
        self._changed = threading.Condition()
        self._stopping = False
        self._problem = ""
        self._failed_starts = 0
        # Event numbers start above any cursor that this scheduler's predecessor can have given out.
        self._published = time.time_ns()  # events up to here are in the store, so the driver may see them
        self._dropped = self._published  # events up to here were seen and are forgotten
        for run in (self._read, self._keep, self._watch_nodes):
            threading.Thread(target=run, name=f"scheduler{run.__name__}", daemon=True).start()

    # For workers

    def take(self, worker: str, count: int) -> Answer:
        """Leases up to `count` concepts."""
        is_starting = time.monotonic() - self._started < _STARTING_S
        expected = self._workers if is_starting else 1
        with self._changed:
            over = self._is_stopped or self._leases.over or self._nodes.get(worker) in self._draining
            leases = [] if over else self._leases.take(worker, count, expected)
            self._changed.notify_all()
            return Answer(tuple(leases), over, self._leases.no_pending)

    def fetch(self, lease: Lease) -> PreparedConcept:
        """The concept of a lease, from Ray's object store."""
        prepared: PreparedConcept = ray.get(lease.payload)
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
        """A sign of life: see Leases.beat. `node`: id of the worker's node."""
        with self._changed:
            self._nodes[worker] = node
            lost = self._leases.beat(worker, steps, computed)
            return Orders(tuple(lost), self._is_stopped or (bool(node) and node in self._draining))

    @property
    def _is_stopped(self) -> bool:
        return bool(self._stopping or self._problem)

    def may_write(self, worker: str, concept_id: str) -> bool:
        """To ask before a write: a worker that was stopped for a while may have lost the concept."""
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
            self._nodes.pop(worker, None)
            self._changed.notify_all()

    def halt(self, problem: str) -> None:
        """The job can't go on, whatever workers do: the store refuses."""
        with self._changed:
            self._problem = self._problem or problem
            self._changed.notify_all()

    def failed_to_start(self, error: str) -> None:
        """A worker could not even start. When that is all that ever happens, the job can't go on."""
        with self._changed:
            self._failed_starts += 1
            if self._failed_starts >= self._max_attempts and not self._leases.steps_computed:
                self._problem = f"no worker could start: {error}"

    # For the driver

    def status(self, cursor: int) -> SchedulerStatus:
        """Counts, and what happened since `cursor` (0 at first)."""
        with self._changed:
            table = self._leases
            seen = max(cursor, self._dropped)
            events = tuple(table.events[seen - self._dropped : self._published - self._dropped])
            del table.events[: seen - self._dropped]
            self._dropped = seen
            return SchedulerStatus(
                done=table.done,
                failed=table.failed,
                skipped=table.skipped,
                running=table.running,
                over=table.over and self._published == self._dropped + len(table.events),
                steps_computed=table.steps_computed,
                steps_reached=table.steps_reached,
                steps_redone=table.steps_redone,
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
        """Offers everything that is left; begins again at what is left when reading fails."""
        try:
            if not self._is_new:
                self._find_again()
            failures = 0
            while True:
                left = self._keys.keys() - self._leases.known
                try:
                    self._read_rows(left)
                    return
                except StoreError:
                    raise
                except Exception:
                    progress = len(self._keys.keys() - self._leases.known) < len(left)
                    failures = 1 if progress else failures + 1
                    if failures >= _READ_TRIES:
                        raise
                    logger.exception("reading the manifest failed; trying again")
                    time.sleep(_READ_WAIT_S * 2 ** (failures - 1))
        except Exception as error:
            logger.exception("reading the manifest failed")
            self.halt(
                str(error) if isinstance(error, StoreError) else f"reading the manifest failed: {error}"
            )

    def _read_rows(self, wanted: Collection[str]) -> None:
        """Pulls rows while fewer than `ahead` wait; Ray Data holds back what isn't pulled."""
        for row in self._rows.iter_rows(wanted):
            concept_id, steps = row["concept_id"], row["steps"]
            if row["done"]:
                self._recognise(concept_id)
                with self._changed:
                    self._leases.skip(concept_id, steps)
                continue
            prepared = PreparedConcept(row["concept"], self._keys[concept_id].images_mtime_digest)
            payload = None if row["error"] else ray.put(prepared)
            with self._changed:
                self._leases.offer(concept_id, payload, steps)
                if row["error"]:
                    self._leases.give_up(concept_id, row["error"])
                while self._leases.waiting >= self._ahead and not self._is_stopped:
                    self._changed.wait()
                if self._is_stopped:
                    return
        with self._changed:
            self._leases.close()

    def _find_again(self) -> None:
        """What this scheduler's predecessor knew: the concepts of this job that are over, by the store."""
        done = [result.concept_id for result in self._store.results() if self._is_done(result)]
        failed = [failure for failure in self._store.failures() if failure.time >= self._began]
        logger.warning(
            "this scheduler was restarted: %d concepts are done, %d failed", len(done), len(failed)
        )
        with self._changed:
            for concept_id in done:
                self._leases.conclude(concept_id)
            for failure in failed:
                if failure.concept_id in self._keys:
                    self._leases.give_up(failure.concept_id, failure.error, quarantined=failure.quarantined)

    def _is_done(self, result: Result) -> bool:
        return self._keys.get(result.concept_id) == result.key

    def _recognise(self, concept_id: str) -> None:
        """Pictures that were touched or moved, but are the same: next time they needn't be read."""
        result = self._store.result(concept_id)
        if result:
            self._store.amend(result.model_copy(update=self._keys[concept_id]._asdict()))

    def _keep(self) -> None:
        """Takes expired leases, and writes failures to the store before anyone hears of them."""
        store = Store(self._store.uri, patience_s=0)  # what fails is tried again at the next tick
        while True:
            with self._changed:
                self._leases.expire()
                news = self._leases.events[self._published - self._dropped :]
            for event in news:
                if event.kind == "failed" and not self._record(store, event):
                    break
                with self._changed:
                    self._published += 1
            time.sleep(_TICK_S)

    def _record(self, store: Store, event: Event) -> bool:
        """Whether a failure's record is in the store."""
        try:
            store.fail(
                Failure(
                    concept_id=event.concept_id,
                    error=event.error,
                    time=time.time(),
                    quarantined=event.quarantined,
                )
            )
            return True
        except Exception as error:
            logger.exception("the store refused a failure's record")
            if isinstance(error, StoreError) and error.is_permanent:
                self.halt(str(error))
            return False

    def _watch_nodes(self) -> None:
        while True:
            try:
                self._draining = self._find_draining()
            except Exception:
                logger.exception("which nodes are draining can't be found out")
            time.sleep(_DRAIN_TICK_S)
