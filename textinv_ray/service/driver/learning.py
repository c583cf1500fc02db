"""A job's cluster: a Ray, the scheduler and the fleet of workers, started and ended around the watch."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING

from textinv_ray.config.job import JobConfig
from textinv_ray.service import metrics
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.signals import Stopping
from textinv_ray.service.driver.watch import POLL_S, UNKNOWN, watch
from textinv_ray.service.tracking.background import MirrorThread
from textinv_ray.util.exit_codes import ExitCode

if TYPE_CHECKING:
    from textinv_ray.service.cluster.fleet import FleetClient
    from textinv_ray.service.cluster.layout import WorkerLayout

_LEAVING_S = 10.0  # the longest wait for trainers that have nothing to do any more


def learn(job: Job, mirror: MirrorThread | None, stopping: Stopping, lock: Lock) -> str:
    """Runs the scheduler and the fleet until all is over, or until a signal. Returns why else it ended early, or "".

    Nothing is started once there was a signal, or the output is another job's.
    """
    import ray

    from textinv_ray.service.cluster import connection
    from textinv_ray.service.cluster.fleet import start_fleet
    from textinv_ray.service.cluster.layout import WorkerLayout, resources_for
    from textinv_ray.service.intake.preparation import Preparation
    from textinv_ray.service.scheduling.client import start_scheduler
    from textinv_ray.service.worker.train_loop import train_loop

    if stopping.signal or lock.lost:
        return lock.lost
    plan, config, output = job.plan, job.config, job.store.uri
    scratch = tempfile.mkdtemp(prefix="textinv-")
    try:
        try:
            is_shared = connection.connect(config, job.console)
        except SystemExit as stop:
            if stop.code != ExitCode.TERMINATED:
                raise
            stopping.signal = signal.SIGTERM  # which `ray.init` had taken for itself
        stopping.listen()
        if stopping.signal:
            return ""
        metrics.report(job.store.shown)
        layout = WorkerLayout.of(config, resources_for(config, ray.nodes()), len(plan.todo))
        job.console.print(f"workers: {layout}")
        cpus = layout.prepare_cpus
        rows = Preparation(job.manifest, config, job.facts, output, plan.with_result, cpus, job.waves)
        scheduler = start_scheduler(rows, plan.todo, output, config, layout)
        fleet = start_fleet(train_loop, layout, config, scheduler, output, scratch)
        missing = partial(_missing, layout, config)
        problem = watch(job, scheduler, fleet, mirror, stopping, lock, missing)
        if is_shared and not lock.lost:  # what trainers still write would be in another job's output
            _wait_for_trainers(fleet, stopping)
        return problem
    finally:
        metrics.stop()
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _missing(layout: WorkerLayout, config: JobConfig) -> str:
    """What workers wait for, as a line; empty when they wait for nothing that is known."""
    import ray

    from textinv_ray.service.cluster.layout import resources_for, waits_for_room
    from textinv_ray.service.cluster.ray_internals import machines_to_come

    there = resources_for(config, ray.nodes())
    line, remedy = layout.missing(there), "it starts when an autoscaler, or you, add a machine"
    # What is free is known of the whole cluster only.
    if not line and not layout.nodes and waits_for_room(layout):
        line = layout.occupied(there, ray.available_resources())
        remedy = "it starts when others are done, or a machine is added"
    if not line:
        return ""
    coming = machines_to_come()
    return f"{line}; the autoscaler says: {coming}" if coming else f"{line}; {remedy}"


def _wait_for_trainers(fleet: FleetClient, stopping: Stopping) -> None:
    """Waits for the trainers that can end: some may wait for a node that never comes.

    Otherwise Ray's autoscaler (2.60) may take a node for busy for good whose worker was killed with its job.
    """
    end, changes = time.monotonic() + _LEAVING_S, fleet.changes(UNKNOWN)
    while not stopping.signal and time.monotonic() < end:
        if state := changes.answer(POLL_S):
            if not state.trainers:
                return
            changes = fleet.changes(state.trainers)
