"""One job, from the manifest to the exit code: what is left to do, a Ray, a feed, a fleet, and the views.

plan -> Ray -> feed -> fleet -> (until the feed says over) -> results.parquet, report.html, MLflow
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from textinv_ray import manifest as manifests
from textinv_ray import tokenizer, uris
from textinv_ray.config import JobConfig
from textinv_ray.manifest import Manifest
from textinv_ray.service import job, messages, models, plan, report, results
from textinv_ray.service.console import Progress, captured
from textinv_ray.service.lock import Lock
from textinv_ray.service.models import ModelFacts
from textinv_ray.service.plan import Plan
from textinv_ray.service.stopping import Stopping, left_in_order
from textinv_ray.service.store import Store, StoreError
from textinv_ray.service.tracker import Tracker
from textinv_ray.service.tracking import View, default_uri

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LEAVING_S = 10.0  # So long trainers with nothing to do are waited for at the end.
_TRACKING_S = 30.0  # So long an MLflow or a log that can't be written is waited for at the end.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",  # job.log has a line of each concept, however alike they are
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


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
    manifest = manifests.open(manifest_uri)
    manifest.check(config)
    facts = models.facts(config.model)
    shown = Console(soft_wrap=True, markup=False, highlight=False)
    with left_in_order(), nullcontext() if dry_run else Lock(store, shown.print) as lock:
        todo = plan.make(manifest, config, facts, store, only=only or (), limit=limit)
        if todo.todo:
            manifest.check(config, tokenizer.load(config.model))
        if dry_run or lock is None:
            messages.print_plan(shown, todo, config, facts, store)
            return 0
        with log_file(store) as log, captured(log, verbose) as console:
            if not todo.todo and not job.is_behind(store):
                return messages.print_nothing_to_do(console, todo, config, store)
            if todo.todo:
                messages.print_start(console, manifest, todo, config, store)
            else:
                console.print(f"all {len(todo.done)} concepts are done; MLflow catches up")
            job.begin(store, manifest, config, todo)
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
                self._console.print(f"the job could not go on: {uris.shown_in(problem)}")
            try:
                return self._end(tracker)
            except StoreError:
                if not problem:
                    raise
                logger.exception("the store has refused before, and does so again")
                return 1

    def _learn(self, tracker: Tracker | None) -> str:
        """Runs feed and fleet until all is over. Returns why it ended early; empty if it didn't."""
        import ray

        from textinv_ray.service import cluster
        from textinv_ray.service.fleet import Size, start_feed, start_fleet
        from textinv_ray.service.preparation import Preparation

        scratch = tempfile.mkdtemp(prefix="textinv-")
        try:
            is_shared = cluster.connect(self._config, self._console)
            self._stopping.listen()
            size = Size.of(self._config, ray.cluster_resources(), len(self._plan.todo))
            messages.print_fleet(self._console, size)
            rows = Preparation(
                self._manifest,
                self._config,
                self._facts,
                self._store.uri,
                self._plan.with_result,
                size.prepare_cpus,
            )
            feed = start_feed(rows, self._plan.todo, self._store.uri, self._config, size)
            fleet = start_fleet(size, self._config, feed, self._store.uri, scratch)
            problem = self._watch(feed, fleet, tracker)
            if is_shared:
                self._wait_for_trainers(fleet)
            return problem
        finally:
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)

    def _watch(self, feed: Any, fleet: Any, tracker: Tracker | None) -> str:
        """Shows progress and passes news on to MLflow, until it is over or can't go on."""
        import ray

        cursor = redone = 0
        with Progress(self._console, len(self._plan.todo), self._plan.steps) as progress:
            while True:
                status = ray.get(feed.status.remote(cursor))
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
                trainers, errors = ray.get(fleet.state.remote())
                if not trainers:
                    return f"all workers have left: {errors}"
                time.sleep(_POLL_S)
        if self._stopping.signal:
            self._console.print(
                "stopping: the workers write checkpoints; the same command goes on from there"
            )
            ray.get(feed.stop.remote())
            self._wait_until_idle(feed)
        return str(status.problem)

    def _wait_until_idle(self, feed: Any) -> None:
        """Until the workers have given back all they had, or there is no time left."""
        import ray

        end = time.monotonic() + self._stopping.grace_s
        while ray.get(feed.status.remote(0)).running and time.monotonic() < end:
            time.sleep(0.1)

    def _wait_for_trainers(self, fleet: Any) -> None:
        """Until those have ended that can: some may wait for a node that never comes.

        Ray's autoscaler (2.60) may count a node as busy for good whose worker was killed with its job.
        """
        import ray

        end = time.monotonic() + _LEAVING_S
        while not self._stopping.signal and time.monotonic() < end and ray.get(fleet.state.remote())[0]:
            time.sleep(0.1)

    # MLflow

    def _start_tracking(self) -> Tracker | None:
        if not self._config.tracking.enabled:
            return None
        self._view = View(
            self._store, tracking_uri(self._config, self._store), self._config.tracking.experiment
        )
        return Tracker(self._view, self._console.print)

    def _finish_tracking(self, tracker: Tracker, status: str, files: list[Path]) -> bool:
        """Waits, within reason, for MLflow to have everything. The results are safe in any case."""
        if not tracker.finish(_TRACKING_S, limit_s=2.0 if self._stopping.signal else math.inf):
            return False
        try:
            self._view.close(status, files)
        except Exception:
            logger.warning("MLflow: %s", uris.shown_in(traceback.format_exc()))
            return False
        return True

    # The end

    def _end(self, tracker: Tracker | None) -> int:
        """Writes the views, says what came of it, and decides the exit code by what is in the store."""
        done, failed = self._outcome()
        code = 0 if len(done) == len(self._plan.todo) else 1
        if self._stopping.signal:
            code = self._stopping.exit_code
        if code <= 1:
            results.write(self._store)
            report.write(self._store)
        job.end(self._store, code)
        if self._plan.todo:
            messages.print_results(self._console, self._store, self._plan, done, failed, self._started)
        if tracker:
            status = {0: "FINISHED", 1: "FAILED"}.get(code, "KILLED")
            is_current = self._finish_tracking(tracker, status, self._local_files() if code <= 1 else [])
            job.set_behind(self._store, not is_current)
            messages.print_tracking(self._console, tracking_uri(self._config, self._store), is_current)
        messages.print_end(self._console, self._store, code, len(self._plan.todo) - len(done) - len(failed))
        return code

    def _outcome(self) -> tuple[set[str], dict[str, str]]:
        """(concepts of this plan that are done, those that failed with their reasons), by the store."""
        todo = self._plan.todo
        failed = {found["concept_id"]: found["error"] for found in self._store.failures()}
        failed = {concept_id: error for concept_id, error in failed.items() if concept_id in todo}
        done = {
            found["concept_id"]
            for found in self._store.results()
            if todo.get(found["concept_id"]) == plan.key_of(found) and found["concept_id"] not in failed
        }
        return done, failed

    def _local_files(self) -> list[Path]:
        if not self._store.is_local:
            return []
        return [Path(self._store.path(name)) for name in ("results.parquet", "report.html")]


def tracking_uri(config: JobConfig, store: Store) -> str:
    """The configured one, MLFLOW_TRACKING_URI, or a database beside the results."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)


def quiet() -> None:
    """Telemetry and progress bars of the libraries off, unless the environment says otherwise."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


@contextmanager
def log_file(store: Store) -> Iterator[Path]:
    """job.log of a local output; for a remote one, a local file that is put there in the end."""
    if store.is_local:
        os.makedirs(store.root, exist_ok=True)
        yield Path(store.path("job.log"))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.log"
        try:
            yield path
        finally:
            with suppress(StoreError):  # a store that refuses has been heard of before
                Store(store.uri, patience_s=_TRACKING_S).write("job.log", path.read_bytes())
