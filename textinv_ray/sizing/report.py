"""Estimates for people, as JSON, and as the documentation's table."""

from __future__ import annotations

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from textinv_ray.config.job import JobConfig
from textinv_ray.sizing import tables
from textinv_ray.sizing.estimates import STARTING_S, Estimate, Work
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import duration

PRESETS = ("sd15", "sd21", "sdxl", "sd35", "flux", "sana", "klein")
"""Columns of the documentation's table."""
_MOST_ROWS = 8
_HOUR = 3600


def show(console: Console, estimate: Estimate, config: JobConfig, title: str, price: float | None) -> None:
    """One screen. `price`: of one GPU for one hour."""
    work, device = estimate.work, estimate.device
    console.print(f"{title}: {_count(work.concepts, 'concept')}, {_count(work.images, 'image')}")
    if estimate.memory_gb is None:
        memory = ""
    else:
        had = f" of {device.memory:g} GB" if device.memory else " GB"
        kept = "computed again in the backward pass" if estimate.checkpointed else "kept"
        memory = f" ({estimate.memory_gb:.1f}{had}, activations {kept})"
    console.print(f"pack on {device.name}: {_count(estimate.pack, 'concept')}{memory}")
    console.print(f"speed: {estimate.samples_per_second:.3g} samples/s ({estimate.source})")
    steps, most = work.samples / work.concepts, work.most_samples / work.concepts
    rule = config.stopping.rule
    told = (
        "no stopping rule"
        if rule == "none"
        else f"stopping.rule {rule}: a mean measured on the bundled model"
    )
    console.print(f"samples a concept: {steps:,.0f} expected of at most {most:,.0f} ({told})")
    reviews = f" and {duration(estimate.review_hours * _HOUR)} of pictures, scores and latents"
    console.print(
        f"one worker: {duration(estimate.training_hours * _HOUR)} of training"
        + (reviews if estimate.review_hours else ", pictures and scores")
        + f"; {estimate.concepts_per_hour:.3g} concepts per hour"
    )
    for note in estimate.notes:
        console.print(f"note: {note}")
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ["GPUs", "wall time", "GPU-hours"] + ([f"cost at {price:g}"] if price is not None else [])
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for count in _counts(work.concepts):
        hours = estimate.gpu_hours(count)
        cells = [str(count), duration(estimate.wall_hours(count) * _HOUR), f"{hours:,.1f}"]
        table.add_row(*cells, *([f"{hours * price:,.2f}"] if price is not None else []))
    console.print(table)
    console.print(
        f"(wall time: from the command on, {STARTING_S:g} s of start included, machines' own start not)"
    )


def as_json(estimate: Estimate, price: float | None) -> dict[str, JsonValue]:
    """Everything that `show` shows."""
    work = estimate.work
    by_count: list[JsonValue] = []
    for count in _counts(work.concepts):
        hours = estimate.gpu_hours(count)
        line: dict[str, JsonValue] = {
            "gpus": count,
            "wall_hours": estimate.wall_hours(count),
            "gpu_hours": hours,
        }
        by_count.append(line if price is None else {**line, "cost": hours * price})
    return {
        "concepts": work.concepts,
        "images": work.images,
        "expected_samples": work.samples,
        "most_samples": work.most_samples,
        "device": estimate.device.name,
        "pack": estimate.pack,
        "activations_checkpointed": estimate.checkpointed,
        "memory_gb": estimate.memory_gb,
        "samples_per_second": estimate.samples_per_second,
        "source": estimate.source,
        "training_hours": estimate.training_hours,
        "review_hours": estimate.review_hours,
        "concepts_per_hour": estimate.concepts_per_hour if estimate.hours else None,
        "notes": list(estimate.notes),
        "by_gpus": by_count,
    }


def gpus_table() -> str:
    """GPU x preset: pack size and concepts per hour, as Markdown."""
    rows = []
    for name, device in tables.devices().items():
        if name == "cpu":
            continue
        cells = [_cell(name, preset) for preset in PRESETS]
        rows.append(f"| `{name}`: {device.name} | {' | '.join(cells)} |")
    head = f"| GPU | {' | '.join(f'`{preset}`' for preset in PRESETS)} |"
    return "\n".join([head, "|---" * (len(PRESETS) + 1) + "|", *rows])


def _cell(device: str, preset: str) -> str:
    config = JobConfig.load(preset)
    try:
        estimate = Estimate.of(Work.of_equal(1000, 5, config), config, device)
    except UserError:
        return "-"
    mark = " *" if estimate.checkpointed else ""
    return f"{estimate.pack}{mark}; {estimate.concepts_per_hour:.3g}"


def _counts(concepts: int) -> list[int]:
    """Numbers of GPUs to show: powers of two."""
    return [2**power for power in range(_MOST_ROWS) if power == 0 or 2**power <= concepts]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
