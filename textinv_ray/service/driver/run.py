"""One job, from the manifest to the exit code: what is left to do, a Ray, a scheduler, a fleet, and the views.

plan -> Ray -> scheduler -> fleet -> (until the scheduler says over) -> results.parquet, report.html, MLflow
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
import traceback
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks, vocabulary
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import job_record, messages
from textinv_ray.service.driver.console import Progress, captured
from textinv_ray.service.driver.environment import log_file, quiet
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.signals import Stopping, sigterm_as_exit
from textinv_ray.service.intake import plan
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.models import sources
from textinv_ray.service.models.sources import ModelFacts
from textinv_ray.service.scheduling.protocol import SchedulerInterface
from textinv_ray.service.store.job import end, is_behind, set_behind
from textinv_ray.service.store.store import Store, StoreError
from textinv_ray.service.tracking.background import MirrorThread
from textinv_ray.service.tracking.mirror import MLflowMirror
from textinv_ray.service.tracking.uri import resolve_uri
from textinv_ray.service.views import report, results_table
from textinv_ray.util.redact import redact_text

if TYPE_CHECKING:
    from textinv_ray.service.cluster.fleet import FleetClient

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LEAVING_S = 10.0  # So long trainers with nothing to do are waited for at the end.
_TRACKING_S = 30.0  # So long an MLflow or a log that can't be written is waited for at the end.


def invert(
    manifest_uri: str,
    config: JobConfig,
    *,
    output: str | None = None,
    only: Collection[str] | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    verbose: bool = False,
) -> int:
    """Learns a word for every row of a manifest that has none yet.

    Returns the exit code: 0 all are done, 1 some failed, 130 or 143 when it was stopped. Raises UserError
    (exit code 2) for what is wrong with the manifest, the configuration or the model.
    """
    quiet()
    store = Store(output or config.service.output)
    manifest = Manifest.open(manifest_uri)
    checks.check(manifest, config)
    facts = sources.facts(config.model)
    shown = Console(soft_wrap=True, markup=False, highlight=False)
    with sigterm_as_exit(), nullcontext() if dry_run else Lock(store, shown.print) as lock:
        todo = plan.make(manifest, config, facts, store, only=only or (), limit=limit)
        if todo.todo:
            checks.check(manifest, config, vocabulary.load(config.model))
        if dry_run or lock is None:
            messages.print_plan(shown, todo, config, facts, store)
            return 0
        with log_file(store) as log, captured(log, verbose) as console:
            if not todo.todo and not is_behind(store):
                return messages.print_nothing_to_do(console, todo, config, store)
            if todo.todo:
                messages.print_start(console, manifest, todo, config, store)
            else:
                console.print(f"all {len(todo.done)} concepts are done; MLflow catches up")
            job_record.begin(store, manifest, config, todo)
            return _Job(store, manifest, config, facts, todo, console, lock).run()


class _Job:
    """The parts of a running job, and the order in which they start and end."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        config: JobConfig,
        facts: ModelFacts,
        todo: Plan,
        console: Console,
        lock: Lock,
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._config = config
        self._facts = facts
        self._plan = todo
        self._console = console
        self._lock = lock
        self._stopping = Stopping()
        self._started = time.monotonic()

    def run(self) -> int:
        with self._stopping:
            tracker = self._start_tracking()
            problem = self._learn(tracker) if self._plan.todo else ""
            if problem:
                self._console.print(f"the job could not go on: {redact_text(problem)}")
            try:
                return self._end(tracker)
            except StoreError:
                if not problem:
                    raise
                logger.exception("the store has refused before, and does so again")
                return 1

    def _learn(self, tracker: MirrorThread | None) -> str:
        """Runs scheduler and fleet until all is over. Returns why it ended early; empty if it didn't."""
        import ray

        from textinv_ray.service.cluster import connection
        from textinv_ray.service.cluster.fleet import start_fleet
        from textinv_ray.service.cluster.layout import WorkerLayout
        from textinv_ray.service.intake.preparation import Preparation
        from textinv_ray.service.scheduling.client import start_scheduler
        from textinv_ray.service.worker.train_loop import train_loop

        scratch = tempfile.mkdtemp(prefix="textinv-")
        try:
            is_shared = connection.connect(self._config, self._console)
            self._stopping.listen()
            size = WorkerLayout.of(self._config, ray.cluster_resources(), len(self._plan.todo))
            self._console.print(f"workers: {size}")
            rows = Preparation(
                self._manifest,
                self._config,
                self._facts,
                self._store.uri,
                self._plan.with_result,
                size.prepare_cpus,
            )
            scheduler = start_scheduler(rows, self._plan.todo, self._store.uri, self._config, size)
            fleet = start_fleet(train_loop, size, self._config, scheduler, self._store.uri, scratch)
            problem = self._watch(scheduler, fleet, tracker)
            if is_shared:
                self._wait_for_trainers(fleet)
            return problem
        finally:
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)

    def _watch(self, scheduler: SchedulerInterface, fleet: FleetClient, tracker: MirrorThread | None) -> str:
        """Shows progress and passes news on to MLflow, until it is over or can't go on."""
        cursor = redone = 0
        with Progress(self._console, len(self._plan.todo), self._plan.steps) as progress:
            while True:
                status = scheduler.status(cursor)
                cursor = status.cursor
                if status.steps_redone > redone:
                    redone = status.steps_redone
                    logger.info("%d steps had to be taken again so far", redone)
                if tracker:
                    tracker.note(event.concept_id for event in status.events)
                for event in status.events:
                    if event.kind == "failed":
                        self._console.print(f"{event.concept_id} failed: {event.error}")
                progress.show(
                    status.done + status.skipped,
                    status.failed,
                    status.running,
                    status.steps_computed,
                    status.steps_reached,
                )
                if status.problem or status.over or self._stopping.signal:
                    break
                if self._lock.lost:
                    return self._lock.lost
                trainers, errors = fleet.state()
                if not trainers:
                    return f"all workers have left: {errors}"
                time.sleep(_POLL_S)
        if self._stopping.signal:
            self._console.print(
                "stopping: the workers write checkpoints; the same command goes on from there"
            )
            scheduler.stop()
            self._wait_until_idle(scheduler)
        return status.problem

    def _wait_until_idle(self, scheduler: SchedulerInterface) -> None:
        """Until the workers have given back all they had, or there is no time left."""
        end = time.monotonic() + self._stopping.grace_s
        while scheduler.status(0).running and time.monotonic() < end:
            time.sleep(0.1)

    def _wait_for_trainers(self, fleet: FleetClient) -> None:
        """Until those have ended that can: some may wait for a node that never comes.

        Ray's autoscaler (2.60) may count a node as busy for good whose worker was killed with its job.
        """
        end = time.monotonic() + _LEAVING_S
        while not self._stopping.signal and time.monotonic() < end and fleet.state().trainers:
            time.sleep(0.1)

    # MLflow

    def _start_tracking(self) -> MirrorThread | None:
        if not self._config.tracking.enabled:
            return None
        self._view = MLflowMirror(
            self._store, resolve_uri(self._config, self._store), self._config.tracking.experiment
        )
        return MirrorThread(self._view, self._console.print)

    def _finish_tracking(self, tracker: MirrorThread, status: str, files: list[Path]) -> bool:
        """Waits, within reason, for MLflow to have everything. The results are safe in any case."""
        if not tracker.finish(_TRACKING_S, limit_s=2.0 if self._stopping.signal else math.inf):
            return False
        try:
            self._view.close(status, files)
        except Exception:
            logger.warning("MLflow: %s", redact_text(traceback.format_exc()))
            return False
        return True

    # The end

    def _end(self, tracker: MirrorThread | None) -> int:
        """Writes the views, says what came of it, and decides the exit code by what is in the store."""
        done, failed = self._outcome()
        code = 0 if len(done) == len(self._plan.todo) else 1
        if self._stopping.signal:
            code = self._stopping.exit_code
        if code <= 1:
            results_table.write(self._store)
            report.write(self._store)
        end(self._store, code)
        if self._plan.todo:
            messages.print_results(self._console, self._store, self._plan, done, failed, self._started)
        if tracker:
            status = {0: "FINISHED", 1: "FAILED"}.get(code, "KILLED")
            is_current = self._finish_tracking(tracker, status, self._local_files() if code <= 1 else [])
            set_behind(self._store, not is_current)
            messages.print_tracking(self._console, resolve_uri(self._config, self._store), is_current)
        messages.print_end(self._console, self._store, code, len(self._plan.todo) - len(done) - len(failed))
        return code

    def _outcome(self) -> tuple[set[str], dict[str, str]]:
        """(concepts of this plan that are done, those that failed with their reasons), by the store."""
        todo = self._plan.todo
        failed = {found.concept_id: found.error for found in self._store.failures()}
        failed = {concept_id: error for concept_id, error in failed.items() if concept_id in todo}
        done = {
            found.concept_id
            for found in self._store.results()
            if todo.get(found.concept_id) == found.key and found.concept_id not in failed
        }
        return done, failed

    def _local_files(self) -> list[Path]:
        if not self._store.is_local:
            return []
        return [Path(self._store.path(name)) for name in ("results.parquet", "report.html")]
