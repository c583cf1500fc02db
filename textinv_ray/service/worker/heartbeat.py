"""A worker's heartbeats, and what the scheduler answers to them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import ray

from textinv_ray.config.job import ServiceConfig
from textinv_ray.service.scheduling.protocol import SchedulerGoneError, SchedulerInterface

logger = logging.getLogger(__name__)

_HUNG_AFTER = 10  # lease timeouts without a tick: a review may last long, a hung device lasts forever


class Heartbeat:
    """Beats from a thread while the worker's loop ticks: a hung one loses its leases as a dead one does."""

    def __init__(
        self,
        scheduler: SchedulerInterface,
        worker: str,
        service: ServiceConfig,
        steps: Callable[[], dict[str, int]],
    ) -> None:
        """`steps`: concept_id -> step of what the worker holds."""
        self._scheduler = scheduler
        self._worker = worker
        self._service = service
        self._steps = steps
        self._node = ray.get_runtime_context().get_node_id()
        self._ticked = time.monotonic()
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.computed = 0
        """Steps that the worker has computed in all; kept by the worker."""
        self.stop = False
        """The worker should write checkpoints and leave."""

    def start(self) -> None:
        """Begins to beat."""
        self._thread.start()

    def end(self) -> None:
        """No more beats: the worker leaves."""
        self._ended.set()
        self._thread.join()

    def tick(self) -> None:
        """The worker's loop is alive."""
        self._ticked = time.monotonic()

    def take_lost(self) -> list[str]:
        """Concepts that aren't the worker's any more, since the last call."""
        with self._lock:
            lost, self._lost = self._lost, set()
        return list(lost)

    def _run(self) -> None:
        while not self._ended.wait(self._service.heartbeat_s):
            if time.monotonic() - self._ticked > _HUNG_AFTER * self._service.lease_timeout_s:
                continue
            try:
                orders = self._scheduler.beat(self._worker, self._steps(), self.computed, self._node)
            except SchedulerGoneError:
                logger.warning("the scheduler is gone: this worker leaves")
                self.stop = True
                return
            with self._lock:
                self._lost.update(orders.lost)
            self.stop = self.stop or orders.stop
