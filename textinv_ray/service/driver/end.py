"""The end of a run: views of all results, a summary for the user, and the exit code."""

from __future__ import annotations

import math
from pathlib import Path

from textinv_ray.service.driver import messages
from textinv_ray.service.driver.job import Job, Outcome
from textinv_ray.service.driver.signals import Stopping
from textinv_ray.service.store import job as stored_job
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.tracking.background import MirrorThread
from textinv_ray.service.tracking.uri import resolve_uri
from textinv_ray.service.views import report, results_table
from textinv_ray.util.exit_codes import ExitCode

_TRACKING_S = 30.0  # the longest wait for an MLflow that can't be written to
_TRACKING_WHEN_STOPPED_S = 2.0  # the longest wait for MLflow in all, after a signal


def end(job: Job, mirror: MirrorThread | None, stopping: Stopping, started: float) -> int:
    """Decides the exit code by what is in the store, and writes the views unless the run was stopped.

    `started`: of the run, by time.monotonic(). Raises StoreError.
    """
    stored = StoredResults.read(job.store)
    outcome = Outcome.of(job.plan, stored, job.began)
    code = ExitCode.DONE if len(outcome.done) == outcome.planned else ExitCode.INCOMPLETE
    if stopping.signal:
        code = stopping.exit_code
    if code <= ExitCode.INCOMPLETE:
        results_table.write(job.store, stored)
        report.write(job.store, stored)
    stored_job.end(job.store, int(code))
    if outcome.planned:
        messages.print_results(job.console, job.store, outcome, started)
    if mirror:
        is_current = mirror.close(
            {ExitCode.DONE: "FINISHED", ExitCode.INCOMPLETE: "FAILED"}.get(code, "KILLED"),
            stored,
            _local_views(job) if code <= ExitCode.INCOMPLETE else [],
            patience_s=_TRACKING_S,
            limit_s=_TRACKING_WHEN_STOPPED_S if stopping.signal else math.inf,
        )
        stored_job.set_behind(job.store, not is_current)
        messages.print_tracking(job.console, resolve_uri(job.config, job.store), is_current, mirror.place)
    messages.print_end(job.console, job.store, code, outcome.unfinished)
    return code


def end_refused(job: Job, mirror: MirrorThread | None) -> None:
    """Ends a run for which there is no cluster that it can use: the user was told why. Raises StoreError."""
    stored_job.end(job.store, int(ExitCode.USER_ERROR))
    if mirror:
        stored, limit_s = StoredResults.read(job.store), _TRACKING_WHEN_STOPPED_S
        mirror.close("FAILED", stored, [], patience_s=limit_s, limit_s=limit_s)


def _local_views(job: Job) -> list[Path]:
    if not job.store.is_local:
        return []
    return [Path(job.store.path(name)) for name in ("results.parquet", "report.html")]
