"""Compares variants of textual inversion, or numbers of training images, on the concepts of a manifest.

    python jobs/ablate.py manifest.parquet --variants progressive,regularized --seeds 3 --output outputs/ablation
    ray job submit --working-dir . -- python jobs/ablate.py s3://.../manifest.parquet --config sd15 --output s3://...
    python jobs/ablate.py manifest.parquet --set-sizes 1,3,5,10 --output outputs/set-sizes

All runs are concepts of one job, so the same command continues where it was stopped. It writes ablation.parquet and
ablation.png (with --set-sizes: set_sizes.png) to the output and to the job's run in MLflow.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

# In a submitted job the package lies beside this folder, and need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer

from textinv_ray.cli.options import ConfigOption, ManifestArgument, SetOption
from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError


def ablate(
    manifest: ManifestArgument,
    config: ConfigOption = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="URI", help="Folder or URI for the results.")
    ] = "outputs/ablation",
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
    overrides: SetOption = None,
) -> None:
    """Learn every variant of every concept, and compare reconstruction and editability."""
    from textinv_ray.experiments import ablation, image_counts

    try:
        # By default all variants take the same number of steps.
        settings = JobConfig.load(config, ["stopping.rule=none", *(overrides or ())])
        if counts is not None:
            if variants:
                raise UserError("--set-sizes and --variants are different studies: give one of them")
            code = image_counts.ablate(
                manifest,
                settings,
                output=output,
                counts=image_counts.parse(counts),
                seeds=seeds,
                limit=limit,
            )
        else:
            names = [name.strip() for name in (variants or "").split(",") if name.strip()]
            code = ablation.ablate(
                manifest, settings, output=output, variants=names, seeds=seeds, limit=limit
            )
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        code = 2
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(ablate)
