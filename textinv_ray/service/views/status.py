"""`textinv status`: where a job stands, by its store alone, while it runs or after, from any machine.

A concept is done when it has its result and running while a checkpoint or a picture of it is recent; a
checkpoint that nobody has renewed for longer than a lease lasts was interrupted. Nothing here writes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from textinv_ray.config.job import ServiceConfig
from textinv_ray.service.store.history import History
from textinv_ray.service.store.records import Failure, JobRecord, Result, mean_scores
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact_text
from textinv_ray.util.text import duration

_RATE_OVER_S = 3600.0  # The rate is that of the last hour, so that it follows a fleet that grows or shrinks.
_SHOWN_RUNNING = 12
_SHOWN_ERRORS = 8
_SHOWN_IDS = 4
_SPECIFIC = re.compile(r"\S*[/\d]\S*")  # Paths and numbers: errors that differ in these alone are one kind.


@dataclass(frozen=True)
class Running:
    """A concept that has begun and isn't over."""

    concept_id: str
    step: int
    """Of its last checkpoint."""
    loss: float | None
    seen_at: float
    """When something of it was last written, in seconds since the epoch."""


@dataclass(frozen=True)
class ErrorKind:
    """Failures that say the same but for names and numbers."""

    error: str
    """Of the first of them."""
    concept_ids: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """Where a job stands."""

    output: str
    manifest: str
    rows: int
    """Of the manifest."""
    started_at: float
    """When its last run began, in seconds since the epoch."""
    ended_at: float | None
    """When its last run ended; none: it runs, or it was killed."""
    exit_code: int | None
    seen_at: float
    """Of the newest thing that was found, in seconds since the epoch."""
    done: int
    running: tuple[Running, ...]
    interrupted: tuple[Running, ...]
    """Begun, but nobody learns them now; the next run goes on from their checkpoints."""
    failed: int
    """Without the quarantined ones."""
    quarantined: int
    """Put aside because they took workers down."""
    waiting: int
    concepts_per_hour: float | None
    """Finished lately; none where nothing was."""
    seconds_left: float | None
    worker_seconds_per_concept: float | None
    steps_per_worker_second: float | None
    scores: dict[str, float] = field(default_factory=dict)
    """Means over all results."""
    errors: tuple[ErrorKind, ...] = ()
    """The most frequent first."""
    mlflow_is_behind: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def read(output: str) -> Status:
    """Raises UserError when there is no job at `output`, a folder or a URI."""
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
        # A failed one is only of interest again when somebody is at it.
        failure = failures.get(concept.concept_id)
        if is_recent and (failure is None or concept.seen_at > failure.time):
            active.append(concept)
            failures.pop(concept.concept_id, None)
        elif failure is None:
            idle.append(concept)
    done = list(results.values())
    stale = _count_stale(job, done)
    quarantined = sum(failure.quarantined for failure in failures.values())
    rows = job.manifest_rows
    waiting = max(0, rows - (len(done) - stale) - len(active) - len(idle) - len(failures))
    rate = _rate(done, begun_at, now)
    left = waiting + len(active) + len(idle)
    seconds = sum(result.seconds for result in done)
    lock = store.times("").get("lock.json", 0.0)  # a running job renews it every few seconds
    seen = [
        begun_at,
        lock,
        *(result.finished_at for result in done),
        *(concept.seen_at for concept in begun),
    ]
    return Status(
        output=store.shown,
        manifest=job.manifest,
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
        concepts_per_hour=rate,
        seconds_left=3600 * left / rate if rate and left and job.ended_at is None else None,
        worker_seconds_per_concept=seconds / len(done) if done else None,
        steps_per_worker_second=sum(result.steps for result in done) / seconds if seconds else None,
        scores=mean_scores(done),
        errors=_error_kinds(failures.values()),
        mlflow_is_behind=job.mlflow_is_behind and job.ended_at is not None,
    )


def show(console: Console, status: Status) -> None:
    """One screen."""
    now = time.time()
    console.print(f"{status.output}: {status.rows} concepts of {status.manifest}")
    console.print(_course(status, now))
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


def _count_stale(job: JobRecord, results: list[Result]) -> int:
    """Results of other settings that the last run set out to replace and hasn't replaced yet."""
    if not job.to_replace or job.exit_code == 0:
        return 0
    new = sum(result.finished_at >= job.begun_at for result in results)
    return max(0, len(results) - new - job.done_before)


def _candidates(store: Store, job: JobRecord, results: Mapping[str, Result]) -> list[str]:
    """Concepts that may be in work: those without a result, and where results get replaced, the old ones."""
    replacing = job.to_replace > 0
    return [
        concept_id
        for concept_id in store.names("concepts")
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
            concept_id, last.step if last else 0, last.loss if last else None, max(times, default=0.0)
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
        ErrorKind(redact_text(found[0].error), tuple(failure.concept_id for failure in found))
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
    return f"{started}, not ended, {seen}: starting, or killed"


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
    for name in ("clip_image_similarity", "clip_text_similarity"):
        if name in status.scores:
            before = status.scores.get(f"{name}_initializer")
            start = f"{before:.3f} -> " if before is not None else ""
            what = name.replace("clip", "CLIP").replace("_", " ")
            lines.append(f"mean {what}: {start}{status.scores[name]:.3f}")
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
