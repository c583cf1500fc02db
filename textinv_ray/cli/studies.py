"""The command of `textinv` that compares ways to learn a word: ablate."""

from __future__ import annotations

from typing import Annotated

import typer

from textinv_ray.cli.options import ConfigOption, ManifestArgument, SetOption, output_option
from textinv_ray.cli.outputs import quiet_libraries
from textinv_ray.config.machine import load_config
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError

_OUTPUT = "outputs/ablation"


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command()(ablate)


def ablate(
    manifest: ManifestArgument,
    config: ConfigOption = None,
    output: Annotated[str | None, output_option("the results", _OUTPUT)] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Variants to learn. Default: all. `base` is always one of them."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant and concept.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N concepts.")] = None,
    counts: Annotated[
        str | None,
        typer.Option(
            "--set-sizes",
            metavar="N,N",
            help="Instead of variants: learn from each concept's first N images.",
        ),
    ] = None,
    predictor: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Of `textinv predictor fit`: adds the words that it predicts, with no step and with 10.",
        ),
    ] = None,
    towards: Annotated[
        str | None,
        typer.Option(
            "--towards-initializer",
            metavar="SHARE,SHARE",
            help="Adds the words of `base`, moved back by these shares such as 0.15,0.3.",
        ),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Learn every variant of every concept, and compare reconstruction and editability.

    All runs are concepts of one job, so the same command continues where it was stopped. It writes ablation.parquet
    and ablation.png (with --set-sizes: set_sizes.png) to the output and to the job's run in MLflow.
    """
    if counts is not None and (variants or predictor or towards):
        other = next(
            name
            for name, given in (
                ("--variants", variants),
                ("--predictor", predictor),
                ("--towards-initializer", towards),
            )
            if given
        )
        raise UserError(f"--set-sizes and {other} are of different studies: give one of them")
    # By default all variants take the same number of steps.
    settings = load_config(config, overrides, [f"service.output={_OUTPUT}", "stopping.rule=none"])
    target = settings.service.output if output is None else output

    Manifest.open(manifest)  # before the seconds that the imports take

    quiet_libraries()
    from textinv_ray.experiments import ablation, image_counts, interpolated

    if counts is not None:
        code = image_counts.ablate(
            manifest, settings, output=target, counts=image_counts.parse(counts), seeds=seeds, limit=limit
        )
    else:
        names = [name.strip() for name in (variants or "").split(",") if name.strip()]
        code = ablation.ablate(
            manifest,
            settings,
            output=target,
            variants=names,
            seeds=seeds,
            limit=limit,
            predictor=predictor,
            shares=interpolated.parse(towards) if towards else (),
        )
    raise typer.Exit(code)
