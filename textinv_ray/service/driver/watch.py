"""While workers learn: progress for the user, news for MLflow, and the reasons to end."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from textinv_ray.service.driver.console import Progress
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.signals import Stopping
from textinv_ray.service.scheduling.leases import Event
from textinv_ray.service.scheduling.protocol import Pending, SchedulerStatus
from textinv_ray.service.tracking.background import MirrorThread
from textinv_ray.util.logs import about

if TYPE_CHECKING:
    from textinv_ray.service.cluster.fleet import FleetState

logger = logging.getLogger(__name__)

WAITING_AFTER_S = 10.0
"""Seconds without a worker after which the user is told what is missing."""
POLL_S = 0.5
"""Seconds between two looks at signals, the lock and the terminal. Scheduler and fleet answer when they have news."""


UNKNOWN = -1
"""The number of trainers before the fleet was asked: it answers at once."""


class Watched(Protocol):
    """What a watch asks the scheduler: a SchedulerClient."""

    def status(self, cursor: int) -> SchedulerStatus:
        """Counts, and the events since `cursor` (0 at first)."""

    def news(self, cursor: int) -> Pending[SchedulerStatus]:
        """Answers with a status when there are events since `cursor`, when all is over, or after some time."""

    def is_over(self) -> bool:
        """Whether there is nothing more to do for any worker."""

    def stop(self) -> None:
        """No more leases; workers are told to write checkpoints and leave."""


class WatchedFleet(Protocol):
    """What a watch asks the fleet: a FleetClient."""

    def changes(self, trainers: int) -> Pending[FleetState]:
        """Answers when the number of trainers isn't `trainers`, or after some time."""


def watch(
    job: Job,
    scheduler: Watched,
    fleet: WatchedFleet,
    mirror: MirrorThread | None,
    stopping: Stopping,
    lock: Lock,
    missing: Callable[[], str],
) -> str:
    """Returns when all is over, when a signal asked to stop, or when the job can't go on: then it says why.

    `missing`: what the cluster lacks for a worker, as a line; empty when it lacks nothing.
    """
    redone = 0
    waiting = _Waiting(missing, job.config.service.wait_for_resources_min)
    status, trainers = scheduler.status(0), fleet.changes(UNKNOWN)
    news = scheduler.news(status.cursor)
    with Progress(job.console, len(job.plan.todo), job.plan.steps, job.screen) as progress:
        while True:
            if status.steps_redone > redone:
                redone = status.steps_redone
                logger.info("%d steps had to be taken again so far", redone)
            _tell(job, mirror, status.events)
            waiting.look(status.begun)
            lock.waiting_for = waiting.line
            progress.show(
                status.done + status.skipped,
                status.failed,
                status.running,
                status.steps_computed,
                status.steps_reached,
                waiting.line,
            )
            if status.problem or status.over or stopping.signal:
                break
            if lock.lost:
                scheduler.stop()
                return lock.lost
            if waiting.too_long:
                return waiting.too_long
            if state := trainers.answer(0.0):
                # The last ones leave when all is over, which `news` tells only after the events are published.
                if not state.trainers and not scheduler.is_over():
                    return f"all workers have left: {state.errors}"
                trainers = fleet.changes(state.trainers)
            latest = news.answer(POLL_S)
            if latest is None:
                status = dataclasses.replace(status, events=())
            else:
                status, news = latest, scheduler.news(latest.cursor)
    if stopping.signal:
        job.console.print("stopping: the workers write checkpoints; the same command goes on from there")
        scheduler.stop()
        _wait_until_idle(scheduler, status.cursor, stopping)
    return status.problem


def _tell(job: Job, mirror: MirrorThread | None, events: Iterable[Event]) -> None:
    """Has MLflow and the user told what happened."""
    for event in events:
        if mirror:
            mirror.note([event.concept_id])
        if event.kind == "failed":
            with about(event.concept_id):
                job.console.print(f"{event.concept_id} failed: {event.error}")


class _Waiting:
    """What keeps the first worker from starting."""

    def __init__(self, missing: Callable[[], str], at_most_min: float | None) -> None:
        """`missing`: see `watch`. `at_most_min`: minutes after which `too_long` says so; None: never."""
        self._missing = missing
        self._at_most_min = at_most_min
        self._since = self._looked = time.monotonic()
        self.line = ""
        """What is missing; empty while nothing is known to be."""
        self.too_long = ""
        """That it was waited for too long; empty otherwise."""

    def look(self, has_begun: bool) -> None:
        """Looks for what is missing, every few seconds while no worker has started."""
        if has_begun:
            self._since, self.line = math.inf, ""
            return
        now = time.monotonic()
        if now - self._since < WAITING_AFTER_S or now - self._looked < WAITING_AFTER_S / 2:
            return
        self._looked = now
        self.line = self._missing()
        minutes = (now - self._since) / 60
        if self._at_most_min is not None and minutes >= self._at_most_min:
            why = self.line or "the workers didn't come up"
            self.too_long = f"no worker could start within {self._at_most_min:g} minutes ({why})"


def _wait_until_idle(scheduler: Watched, cursor: int, stopping: Stopping) -> None:
    """Until the workers have given back all they had, or there is no time left. `cursor`: of the last status."""
    end, news = time.monotonic() + stopping.grace_s, scheduler.news(cursor)
    while time.monotonic() < end:
        status = news.answer(POLL_S)
        if status and not status.running:
            return
        if status:
            news = scheduler.news(status.cursor)
