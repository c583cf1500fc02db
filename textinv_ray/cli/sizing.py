"""`textinv plan`: what a job will take, before anything is started."""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer

from textinv_ray.cli.options import ConfigOption, ManifestArgument, SetOption
from textinv_ray.config.job import DEFAULT_PRESET
from textinv_ray.config.machine import load_config
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact
from textinv_ray.util.terminal import PlainConsole

GpuOption = Annotated[
    str,
    typer.Option("--gpu", metavar="NAME", help="Kind of GPU: t4, l4, a10g, a100-80, h100, ...; or cpu."),
]
PriceOption = Annotated[
    float | None,
    typer.Option(min=0.0, metavar="AMOUNT", help="Price of one GPU for one hour, in any currency."),
]


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command()(plan)


def plan(
    manifest: ManifestArgument,
    gpu: GpuOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
    price: PriceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Estimate pack size, GPU-hours, wall time and cost of a job, by the manifest, the configuration and the GPU.

    Starts nothing and downloads nothing. Figures are computed from tables unless they say that they were measured.
    """
    job = load_config(config, overrides)
    if price is not None and not math.isfinite(price):
        raise UserError(f"--price {price}: give a number")

    from textinv_ray.manifest import checks
    from textinv_ray.manifest.reader import Manifest
    from textinv_ray.service.intake import work
    from textinv_ray.sizing import report
    from textinv_ray.sizing.estimates import Estimate

    opened = Manifest.open(manifest)
    checks.check(opened, job)
    estimate = Estimate.of(work.of(opened, job), job, gpu.lower())
    if as_json:
        typer.echo(json.dumps(report.as_json(estimate, price), indent=1))
    else:
        title = f"{redact(manifest)}, configuration {redact(config or DEFAULT_PRESET)}"
        report.show(PlainConsole(), estimate, job, title, price)
