"""While workers learn: progress for the user, news for MLflow, and the reasons to end."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from textinv_ray.service.driver.console import Progress
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.signals import Stopping
from textinv_ray.service.scheduling.protocol import SchedulerInterface
from textinv_ray.service.tracking.background import MirrorThread

if TYPE_CHECKING:
    from textinv_ray.service.cluster.fleet import FleetClient

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Seconds between two questions to the scheduler."""


def watch(
    job: Job,
    scheduler: SchedulerInterface,
    fleet: FleetClient,
    mirror: MirrorThread | None,
    stopping: Stopping,
    lock: Lock,
) -> str:
    """Returns when all is over, when a signal asked to stop, or when the job can't go on: then it says why."""
    cursor = redone = 0
    with Progress(job.console, len(job.plan.todo), job.plan.steps) as progress:
        while True:
            status = scheduler.status(cursor)
            cursor = status.cursor
            if status.steps_redone > redone:
                redone = status.steps_redone
                logger.info("%d steps had to be taken again so far", redone)
            if mirror:
                mirror.note(event.concept_id for event in status.events)
            for event in status.events:
                if event.kind == "failed":
                    job.console.print(f"{event.concept_id} failed: {event.error}")
            progress.show(
                status.done + status.skipped,
                status.failed,
                status.running,
                status.steps_computed,
                status.steps_reached,
            )
            if status.problem or status.over or stopping.signal:
                break
            if lock.lost:
                return lock.lost
            trainers, errors = fleet.state()
            if not trainers:
                return f"all workers have left: {errors}"
            time.sleep(POLL_S)
    if stopping.signal:
        job.console.print("stopping: the workers write checkpoints; the same command goes on from there")
        scheduler.stop()
        _wait_until_idle(scheduler, stopping)
    return status.problem


def _wait_until_idle(scheduler: SchedulerInterface, stopping: Stopping) -> None:
    """Until the workers have given back all they had, or there is no time left."""
    end = time.monotonic() + stopping.grace_s
    while scheduler.status(0).running and time.monotonic() < end:
        time.sleep(0.1)
