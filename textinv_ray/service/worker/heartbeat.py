"""A worker's heartbeats, and what the scheduler answers to them."""

from __future__ import annotations

import logging
import threading
import time

from textinv_ray.service.scheduling.protocol import Pending, SchedulerGoneError
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.context import WorkerContext

logger = logging.getLogger(__name__)

_LISTEN_S = 0.2  # the longest that `end` waits for the thread
_HUNG_AFTER = 10  # Lease timeouts without a tick: a batch of pictures may take minutes.


class Heartbeat:
    """A thread that sends heartbeats while the worker's loop ticks, so that a hung worker loses its leases, too."""

    def __init__(self, context: WorkerContext, node: str) -> None:
        """`node`: id of the worker's node."""
        self._context = context
        self._service = context.config.service
        self._node = node
        self._ticked = time.monotonic()
        self._lost: dict[ActiveConcept, None] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.computed = 0
        """Steps that the worker has taken, counted per concept."""
        self.stop = False
        """Whether the worker must write checkpoints and leave."""

    def start(self) -> None:
        """Begins to send heartbeats."""
        self._thread.start()

    def end(self) -> None:
        """Sends no more heartbeats."""
        self._ended.set()
        self._thread.join()

    def tick(self) -> None:
        """The worker's loop is alive."""
        self._ticked = time.monotonic()

    def add_steps(self, count: int) -> None:
        """The worker has taken `count` more steps, counted per concept."""
        self.computed += count

    def take_lost(self) -> list[ActiveConcept]:
        """Concepts whose leases the worker has lost since the last call."""
        with self._lock:
            lost, self._lost = self._lost, {}
        return list(lost)

    def _run(self) -> None:
        try:
            notice = self._context.scheduler.notice(self._node)
            while not self._ended.is_set():
                notice = self._listen(notice)
                if not self._ended.is_set():
                    self._beat()
        except SchedulerGoneError:
            logger.warning("the scheduler is gone: this worker leaves")
            self.stop = True

    def _listen(self, notice: Pending[bool]) -> Pending[bool]:
        """Until the next heartbeat is due, listens for the word to leave. Returns what to listen to next."""
        end = time.monotonic() + self._service.heartbeat_s
        while (left := end - time.monotonic()) > 0 and not self._ended.is_set():
            told = None if self.stop else notice.answer(min(left, _LISTEN_S))
            if told:
                self.stop = True
            elif told is not None:
                notice = self._context.scheduler.notice(self._node)
            elif self.stop:
                self._ended.wait(left)
        return notice

    def _beat(self) -> None:
        if time.monotonic() - self._ticked > _HUNG_AFTER * self._service.lease_timeout_s:
            return
        with self._context.lease_lock:
            held = list(self._context.concepts)
            steps = {active.concept_id: active.task.step for active in held}
            orders = self._context.scheduler.beat(self._context.name, steps, self.computed, self._node)
        with self._lock:
            self._lost.update({active: None for active in held if active.concept_id in orders.lost})
        self.stop = self.stop or orders.stop
