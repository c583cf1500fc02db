"""What a job tells its user, in lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from textinv_ray.config.job import DEFAULT_PRESET, JobConfig
from textinv_ray.model_files.places import is_bundled
from textinv_ray.service.driver.job import Job, Outcome
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.intake.waves import Waves
from textinv_ray.service.store.records import Result, worse_than_initializer
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.uri import how_to_open, resolve_uri
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.text import duration

_SHOWN_ROWS = 30
_SHOWN_FAILURES = 20
_SHOWN_DAMAGED = 10
_SHOWN_WORSE = 10


def print_start(job: Job) -> None:
    """What will run, with which model, where results go, and the resolved configuration."""
    console, manifest, plan, config, store = job.console, job.manifest, job.plan, job.config, job.store
    if not plan.todo and not plan.later:
        views = "results.parquet" + (
            ", report.html and MLflow" if config.tracking.enabled else " and report.html"
        )
        console.print(f"all {_count(len(plan.done), 'concept')} are done; {views} catch up")
        return
    console.print(f"manifest: {redact(manifest.uri)}, {_count(manifest.num_rows, 'concept')}")
    line = f"to learn: {_count(len(plan.todo), 'concept')}, {plan.steps} steps"
    console.print(line + (f"; done already: {len(plan.done)}" if plan.done else ""))
    for line in (*_waves(plan, job.waves, config), *_own_start(plan, config)):
        console.print(line)
    console.print(f"model: {_model(config)}")
    console.print(f"output: {store.shown}")
    changes = _changes(config, JobConfig.load(job.preset))
    with_changes = f" with {', '.join(changes)}" if changes else ""
    console.print(
        f"configuration: {redact(job.preset or DEFAULT_PRESET)}{with_changes} (job.json has all of it)"
    )


def _waves(plan: Plan, waves: Waves | None, config: JobConfig) -> Iterator[str]:
    wanted = config.service.waves.first
    if plan.later:
        yield f"then, from words that a predictor makes of these: {_count(len(plan.later), 'concept')}"
        if config.training.warm_start.steps is None:
            yield "  with as many steps as these; fewer will do: training.warm_start.steps"
    elif waves and len(waves.first) < (wanted or 0) and not waves.decided:
        yield f"waves are left out: no more than {len(waves.first)} concepts could be in the first part"
    elif waves and waves.start:
        yield f"waves: words after the first {len(waves.first)} start from {waves.start.name}"


def _own_start(plan: Plan, config: JobConfig) -> Iterator[str]:
    if plan.own_start:
        start = redact(str(config.training.init_from))
        yield (
            f"  {plan.own_start} of these won't start from training.init_from={start}: their rows have an "
            "initializer_token, which comes first; leave it out of the manifest, or give the rows init_from"
        )


def damaged(concept_ids: Sequence[str]) -> str:
    """Which concepts are made again though their results are up to date."""
    few = ", ".join(concept_ids[:_SHOWN_DAMAGED]) + (", ..." if len(concept_ids) > _SHOWN_DAMAGED else "")
    return (
        f"{_count(len(concept_ids), 'concept')} with a missing or damaged learned_embeds.safetensors or training.png, "
        f"made again from the last state where that is sound: {few}"
    )


def print_nothing_to_do(console: Console, plan: Plan, config: JobConfig, store: Store) -> int:
    """All is done. Returns the exit code."""
    console.print(f"nothing to do: all {_count(len(plan.done), 'concept')} are done")
    console.print(f"results: {store.shown}")
    console.print(f"review: textinv review {store.shown}")
    if config.tracking.enabled:
        print_tracking(console, resolve_uri(config, store), True)
    return ExitCode.DONE


def print_plan(
    console: Console, plan: Plan, config: JobConfig, store: Store, estimated: tuple[float | None, str]
) -> None:
    """For --dry-run. `estimated`: see `plan.estimate`."""
    console.print("the manifest is in order")
    for path in plan.missing:
        console.print(f"  but this image doesn't exist, so its concept will fail: {path}")
    console.print(f"model: {_model(config)}")
    console.print(f"output: {store.shown}")
    console.print(f"done already: {_count(len(plan.done), 'concept')}")
    console.print(f"to learn: {_count(len(plan.todo), 'concept')}, {plan.steps} steps")
    if plan.later:
        then = f"{_count(len(plan.later), 'concept')}, {plan.later_steps} steps"
        console.print(f"  then {then}, from words that these predict")
    for line in _own_start(plan, config):
        console.print(line)
    if not (plan.todo or plan.later):
        return
    again = len(plan.with_result)
    if again:
        console.print(
            f"  of these, {again} have a result of other settings or images, which will be replaced"
        )
    seconds, source = estimated
    if seconds is None:
        console.print(f"no estimate: {source}")
        return
    console.print(f"estimate: {duration(seconds)} of one worker's time ({source})")
    if config.service.workers != "auto":
        workers = min(config.service.workers, len(plan.todo) + len(plan.later))
        console.print(f"  with {_count(workers, 'worker')}: about {duration(seconds / workers)}")


def print_results(console: Console, store: Store, outcome: Outcome, started: float) -> None:
    """A table of the run's concepts: failed ones first, then the others by rising image similarity."""
    results = sorted(outcome.done, key=lambda result: result.clip_image_similarity or 0.0)
    failed = outcome.failed
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, side in (
        ("concept", "left"),
        ("status", "left"),
        ("steps", "right"),
        ("CLIP image similarity", "right"),
        ("CLIP text similarity", "right"),
        ("seconds", "right"),
    ):
        table.add_column(column, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for concept_id in list(failed)[:_SHOWN_FAILURES]:
        table.add_row(concept_id, "failed", "", "", "", "")
    for result in results[:_SHOWN_ROWS]:
        table.add_row(
            result.concept_id,
            "done",
            _steps(result),
            _change(result.clip_image_similarity_initializer, result.clip_image_similarity),
            _change(result.clip_text_similarity_initializer, result.clip_text_similarity),
            f"{result.seconds:.0f}",
        )
    if table.rows:
        console.print()
        console.print(table)
        if len(results) > _SHOWN_ROWS:
            console.print(f"(the {_SHOWN_ROWS} least similar of {len(results)}; results.parquet has all)")
        console.print(
            "(similarity of the initializer word -> of the learned word; seconds: of a worker's time, of which "
            + ", ".join(f"{share:.0%} for {what}" for what, share in _shares(results).items())
            + ")"
        )
    console.print()
    took = duration(time.monotonic() - started)
    console.print(
        f"{len(results)} of {_count(outcome.planned, 'concept')} learned in {took}, {len(failed)} failed"
    )
    for concept_id, error in list(failed.items())[:_SHOWN_FAILURES]:
        console.print(f"  {concept_id}: {error}")
    if len(failed) > _SHOWN_FAILURES:
        console.print(f"  ... and {len(failed) - _SHOWN_FAILURES} more, in {store.shown}/failed")
    worse = worse_than_initializer(outcome.done)
    if worse:
        console.print(f"{_count(len(worse), 'result')} got worse than {_initializers(len(worse))}:")
    for result in worse[:_SHOWN_WORSE]:
        change = _change(result.clip_image_similarity_initializer, result.clip_image_similarity)
        console.print(f"  {result.concept_id}: CLIP image similarity {change}")
    if len(worse) > _SHOWN_WORSE:
        console.print(f"  ... and {len(worse) - _SHOWN_WORSE} more, first in {store.shown}/report.html")


def print_tracking(console: Console, uri: str, is_current: bool, place: str = "") -> None:
    """How to open MLflow. `place`: see MLflowMirror.place."""
    console.print(f"MLflow: {how_to_open(uri, place)}")
    if not is_current:
        console.print("  MLflow hasn't everything yet; the next run of this command catches up")


def print_end(console: Console, store: Store, code: int, unfinished: int) -> None:
    """Where all is, and how to go on."""
    if code <= ExitCode.INCOMPLETE:
        console.print(f"results: {store.shown}/results.parquet, {store.shown}/report.html")
        console.print(f"review: textinv review {store.shown}")
    else:
        console.print(f"results so far: {store.shown}")
    if unfinished or code:
        console.print("the same command goes on where this one ended; log: " + f"{store.shown}/job.log")


def _changes(config: JobConfig, preset: JobConfig) -> list[str]:
    """The settings that differ from the preset, as `section.field=value`, without credentials and the output."""
    own, base = _flat(config.to_dict()), _flat(preset.to_dict())
    return [
        f"{name}={redact_text(str(value))}"
        for name, value in own.items()
        if base.get(name) != value and name != "service.output"
    ]


def _flat(sections: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by their dotted names. Labels are no settings but a value."""
    found: dict[str, object] = {}
    for name, value in sections.items():
        if isinstance(value, dict) and name != "label_selector":
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _model(config: JobConfig) -> str:
    if is_bundled(config.model.path):
        return (
            f"{config.model.path}, the small one that ships with this package (64 px; to see how it works); "
            "Stable Diffusion: --config sd15"
        )
    return redact(config.model.path)


def _shares(results: Sequence[Result]) -> dict[str, float]:
    """Shares of the workers' time that wasn't learning. Without `stopping.rule: clip` there is no second one."""
    seconds = sum(result.seconds for result in results) or 1.0
    shares = {"samples and scores": sum(result.review_seconds for result in results) / seconds}
    stopping = sum(result.stopping_seconds for result in results) / seconds
    return shares | ({"choosing the best word": stopping} if stopping else {})


def _steps(result: Result) -> str:
    return str(result.steps) if result.stopped == "steps" else f"{result.steps} ({result.stopped})"


def _change(before: float | None, after: float | None) -> str:
    if after is None:
        return ""
    return f"{before:.3f} -> {after:.3f}" if before is not None else f"{after:.3f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _initializers(count: int) -> str:
    return "its initializer" if count == 1 else "their initializers"
