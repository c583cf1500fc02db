"""`textinv status`: how far a job is, from its store alone: while it runs or later, on any machine. Writes nothing.

A concept is done when it has a result. It runs while its newest file is recent. When nothing was written for longer
than a lease lasts, it was interrupted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from textinv_ray.config.job import ServiceConfig
from textinv_ray.service.store import holder
from textinv_ray.service.store.history import History
from textinv_ray.service.store.records import (
    WAVES,
    Count,
    Failure,
    JobRecord,
    Record,
    Result,
    Time,
    WavesRecord,
    mean_scores,
    parse,
    worse_than_initializer,
)
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table
from textinv_ray.service.views.columns import RETRIEVAL
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import redact
from textinv_ray.util.statistics import mean_of
from textinv_ray.util.text import duration, one_line

_RATE_OVER_S = 3600.0  # The rate is that of the last hour, so that it follows a fleet that grows or shrinks.
_SHOWN_SCORES = {
    "clip_image_similarity": "CLIP image similarity",
    "clip_text_similarity": "CLIP text similarity",
    "judge_similarity": "judge similarity",
    RETRIEVAL: "retrieval top 1",
}
_SILENT_S = 60.0  # A lock that wasn't renewed for so long is a dead job's.
_SHOWN_RUNNING = 12
_SHOWN_ERRORS = 8
_SHOWN_IDS = 4
_SPECIFIC = re.compile(r"\S*[/\d]\S*")  # Paths and numbers: errors that differ in these alone are one kind.


class Running(Record):
    """A concept that has begun and hasn't ended."""

    concept_id: str
    """Name of the concept."""
    step: Count
    """Optimizer steps of its last checkpoint."""
    loss: float | None
    """Denoising loss at that step; null where it isn't known."""
    seen_at: Time
    """When one of its files was last written."""


class ErrorKind(Record):
    """Failures whose errors are equal but for names and numbers."""

    error: str
    """Error of the first of them."""
    concept_ids: tuple[str, ...]
    """Concepts that failed by it."""


class Status(Record):
    """How far a job is: what `textinv status --json` prints."""

    output: str
    """The output, without credentials."""
    manifest: str
    """URI of the manifest."""
    rows: Count
    """Concepts in the manifest."""
    started_at: Time
    """When the last run began."""
    ended_at: Time | None
    """When the last run ended; null while it runs, or when it was killed."""
    exit_code: int | None
    """Of the last run; null while `ended_at` is."""
    seen_at: Time
    """When the newest file was written."""
    done: Count
    """Concepts that have their result."""
    running: tuple[Running, ...]
    """Concepts that a worker learns."""
    interrupted: tuple[Running, ...]
    """Concepts that have begun and that no worker learns; the next run continues them from their checkpoints."""
    failed: Count
    """Concepts that were given up, without the quarantined ones."""
    quarantined: Count
    """Concepts that were put aside because workers were lost with them."""
    waiting: Count
    """Concepts that haven't begun."""
    waiting_for: str
    """What keeps the first worker from starting, by the driver's last sign of life; empty: nothing that is known."""
    waves: str
    """What concepts after the first part start from, or that they wait for it; empty for a job without waves."""
    concepts_per_hour: float | None
    """Over the last hour in which a concept was finished; null before the first one."""
    seconds_left: float | None
    """Until all are done, at this rate; null where it isn't known."""
    worker_seconds_per_concept: float | None
    """Mean over all results; null without one."""
    steps_per_worker_second: float | None
    """Optimizer steps of all results per second of a worker's time; null without a result."""
    scores: dict[str, float]
    """Mean of each score over the results that have it; `retrieval_top1` since the last run that wrote it."""
    intervals: dict[str, tuple[float, float]]
    """95 % confidence intervals of `scores`, by bootstrap over concepts; scores of a single concept have none."""
    worse_than_initializer: tuple[str, ...]
    """Concepts whose word is less similar to the training images than its initializer, the worst first."""
    errors: tuple[ErrorKind, ...]
    """Kinds of errors, the most frequent first."""
    mlflow_is_behind: bool
    """Whether the last run ended before MLflow had everything."""


def read(output: str) -> Status:
    """The status of the job at `output`, a folder or a URI. Raises UserError when there is none."""
    store, now = Store(output), time.time()
    job = store.job()
    if job is None:
        raise UserError(f"{store.shown}: no job.json there; give the --output of a job")
    stored = StoredResults.read(store)
    results = {result.concept_id: result for result in stored.results}
    failures = {failure.concept_id: failure for failure in stored.without_result}
    begun_at = job.begun_at
    begun = list(_begun(store, _candidates(store, job, results)))
    active, idle = [], []
    patience = _patience_s(job.config(store.shown).service)
    for concept in begun:
        is_recent = now - concept.seen_at < patience and job.ended_at is None
        # A failed concept counts as running again once a worker has written something of it.
        failure = failures.get(concept.concept_id)
        if is_recent and (failure is None or concept.seen_at > failure.time):
            active.append(concept)
            failures.pop(concept.concept_id, None)
        elif failure is None:
            idle.append(concept)
    done = list(results.values())
    means = mean_scores(done)
    if shares := list(results_table.retrieval(store).values()):
        means[RETRIEVAL] = mean_of(shares)
    stale = _count_stale(job, done)
    quarantined = sum(failure.quarantined for failure in failures.values())
    rows = job.manifest_rows
    waiting = max(0, rows - (len(done) - stale) - len(active) - len(idle) - len(failures))
    rate = _rate(done, begun_at, now)
    left = waiting + len(active) + len(idle)
    seconds = sum(result.seconds for result in done)
    lock = store.times("").get(holder.NAME, 0.0)  # a running job renews it every few seconds
    seen = [
        begun_at,
        lock,
        *(result.finished_at for result in done),
        *(concept.seen_at for concept in begun),
    ]
    return Status(
        output=store.shown,
        manifest=one_line(redact(job.manifest)),
        rows=rows,
        started_at=begun_at,
        ended_at=job.ended_at,
        exit_code=job.exit_code,
        seen_at=max(seen),
        done=len(done) - stale,
        running=tuple(active),
        interrupted=tuple(idle),
        failed=len(failures) - quarantined,
        quarantined=quarantined,
        waiting=waiting,
        waiting_for=_waiting_for(store) if job.ended_at is None and now - lock < _SILENT_S else "",
        waves=_waves(store, job.config(store.shown).service.waves.first),
        concepts_per_hour=rate,
        seconds_left=3600 * left / rate if rate and left and job.ended_at is None else None,
        worker_seconds_per_concept=seconds / len(done) if done else None,
        steps_per_worker_second=sum(result.steps for result in done) / seconds if seconds else None,
        scores={name: found.mean for name, found in means.items()},
        intervals={name: (found.low, found.high) for name, found in means.items() if found.values > 1},
        worse_than_initializer=tuple(result.concept_id for result in worse_than_initializer(done)),
        errors=_error_kinds(failures.values()),
        mlflow_is_behind=job.mlflow_is_behind and job.ended_at is not None,
    )


def show(console: Console, status: Status) -> None:
    """One screen."""
    now = time.time()
    console.print(f"{status.output}: {status.rows} concepts of {status.manifest}")
    console.print(_course(status, now))
    if status.waiting_for:
        console.print(status.waiting_for)
    if status.waves:
        console.print(status.waves)
    console.print()
    counts = Table(box=None, show_header=False, pad_edge=False)
    counts.add_column()
    counts.add_column(justify="right")
    counts.add_column()
    for name, number, note in (
        ("done", status.done, f"of {status.rows}"),
        ("running", len(status.running), ""),
        ("interrupted", len(status.interrupted), "the same command goes on from their checkpoints"),
        ("waiting", status.waiting, ""),
        ("failed", status.failed, ""),
        ("quarantined", status.quarantined, "they took workers down"),
    ):
        if number or name in ("done", "running", "failed"):
            counts.add_row(name, str(number), note)
    console.print(counts)
    console.print()
    for line in _figures(status):
        console.print(line)
    shown = status.running or status.interrupted
    if shown:
        console.print()
        console.print(_concepts(shown, now))
        if len(shown) > _SHOWN_RUNNING:
            console.print(f"... and {len(shown) - _SHOWN_RUNNING} more")
    if status.errors:
        console.print()
        console.print("errors:")
    for kind in status.errors[:_SHOWN_ERRORS]:
        ids = ", ".join(kind.concept_ids[:_SHOWN_IDS])
        more = ", ..." if len(kind.concept_ids) > _SHOWN_IDS else ""
        console.print(f"  {len(kind.concept_ids)} x {kind.error}  ({ids}{more})")
    if len(status.errors) > _SHOWN_ERRORS:
        console.print(
            f"  ... and {len(status.errors) - _SHOWN_ERRORS} other kinds, in {status.output}/failed"
        )
    if status.mlflow_is_behind:
        console.print()
        console.print(f"MLflow hasn't everything; `textinv track {status.output}` writes what is missing")


# Reading


def _waiting_for(store: Store) -> str:
    """What the lock says that the job waits for."""
    try:
        return one_line(parse(holder.Holder, store.read(holder.NAME) or b"").waiting_for)
    except ValueError:
        return ""


def _waves(store: Store, first: int | None) -> str:
    if first is None:
        return ""
    record = store.record(WavesRecord, WAVES)
    if record is None:
        return f"first wave: a predictor is fitted once the first {first} concepts are over"
    if record.predictor:
        return f"second wave: {record.words} words predict the others, by {store.shown}/{record.predictor}"
    return f"waves are left out: {record.why}"


def _count_stale(job: JobRecord, results: list[Result]) -> int:
    """Results of other settings that the last run set out to replace and hasn't replaced yet."""
    if not job.to_replace or job.exit_code == ExitCode.DONE:
        return 0
    new = sum(result.finished_at >= job.begun_at for result in results)
    return max(0, len(results) - new - job.done_before)


def _candidates(store: Store, job: JobRecord, results: Mapping[str, Result]) -> list[str]:
    """Concepts that may be in work: those without a result, and where results get replaced, the old ones."""
    replacing = job.to_replace > 0
    return [
        concept_id
        for concept_id in store.concepts()
        if concept_id not in results or (replacing and results[concept_id].finished_at < job.begun_at)
    ]


def _begun(store: Store, concept_ids: Iterable[str]) -> Iterable[Running]:
    for concept_id in concept_ids:
        written = store.times("concepts", concept_id)
        if store.result(concept_id) and "checkpoint.safetensors" not in written:
            continue  # done in the meantime, or its old result waits to be replaced
        data = store.read_concept(concept_id, "history.parquet")
        try:
            points = History.from_bytes(data).points if data else []
        except ValueError:
            points = []
        times = [*written.values(), *(point.time_ms / 1000 for point in points[-1:])]
        last = points[-1] if points else None
        yield Running(
            concept_id=concept_id,
            step=last.step if last else 0,
            loss=last.loss if last else None,
            seen_at=max(times, default=0.0),
        )


def _patience_s(service: ServiceConfig) -> float:
    """Longer than a healthy worker is silent: the time between checkpoints, twice, and a lease."""
    return 2 * service.checkpoint_every_s + service.lease_timeout_s


def _rate(done: Iterable[Result], begun_at: float, now: float) -> float | None:
    """Concepts per hour, over the last hour in which anything was finished in this run."""
    times = sorted(result.finished_at for result in done if result.finished_at >= begun_at)
    if not times:
        return None
    end = min(now, times[-1])
    start = max(begun_at, end - _RATE_OVER_S)
    count = sum(start < moment <= end for moment in times)
    return 3600 * count / (end - start) if end > start else None


def _error_kinds(failures: Iterable[Failure]) -> tuple[ErrorKind, ...]:
    kinds: dict[str, list[Failure]] = {}
    for failure in failures:
        kinds.setdefault(_SPECIFIC.sub("#", failure.error), []).append(failure)
    return tuple(
        ErrorKind(
            error=found[0].error,
            concept_ids=tuple(failure.concept_id for failure in found),
        )
        for found in sorted(kinds.values(), key=len, reverse=True)
    )


# Showing


def _course(status: Status, now: float) -> str:
    started = f"last run started {_ago(now - status.started_at)}"
    if status.ended_at is not None:
        return f"{started}, ended {_ago(now - status.ended_at)} with exit code {status.exit_code}"
    seen = f"last sign of life {_ago(now - status.seen_at)}"
    if status.running:
        return f"{started}, {seen}"
    return f"{started}, not ended, {seen}" + ("" if status.waiting_for else ": starting, or killed")


def _figures(status: Status) -> list[str]:
    lines = []
    if status.concepts_per_hour:
        left = f", about {duration(status.seconds_left)} left" if status.seconds_left else ""
        lines.append(f"rate: {status.concepts_per_hour:.1f} concepts per hour{left}")
    if status.worker_seconds_per_concept is not None:
        steps = status.steps_per_worker_second
        lines.append(
            f"a worker: {status.worker_seconds_per_concept:.1f} s per concept"
            + (f", {steps:.2f} steps per second" if steps else "")
        )
    for name, what in _SHOWN_SCORES.items():
        if name in status.scores:
            before = status.scores.get(f"{name}_initializer")
            start = f"{before:.3f} -> " if before is not None else ""
            low, high = status.intervals.get(name, (None, None))
            interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
            lines.append(f"mean {what}: {start}{status.scores[name]:.3f}{interval}")
    worse = status.worse_than_initializer
    if worse:
        ids = ", ".join(worse[:_SHOWN_IDS]) + (", ..." if len(worse) > _SHOWN_IDS else "")
        lines.append(f"results that got worse than their initializer: {len(worse)} ({ids})")
    return lines


def _concepts(concepts: tuple[Running, ...], now: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("concept", no_wrap=True)
    for column in ("step", "loss", "written"):
        table.add_column(column, justify="right", no_wrap=True)
    for concept in sorted(concepts, key=lambda found: -found.seen_at)[:_SHOWN_RUNNING]:
        loss = "" if concept.loss is None else f"{concept.loss:.4f}"
        table.add_row(concept.concept_id, str(concept.step), loss, _ago(now - concept.seen_at))
    return table


def _ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"
