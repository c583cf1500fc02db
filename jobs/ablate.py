"""Compare the variants of textual inversion on the concepts of a manifest.

    python jobs/ablate.py manifest.parquet --variants progressive,regularized --seeds 3 --output outputs/ablation
    ray job submit --working-dir . -- python jobs/ablate.py s3://.../manifest.parquet --config sd15 --output s3://...
    python jobs/ablate.py manifest.parquet --set-sizes 1,3,5,10 --output outputs/set-sizes

All runs are concepts of one job, so the same command continues where it was stopped. The output gets ablation.parquet
and ablation.png (set_sizes.png), which MLflow's run of the job has, too.
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
    set_sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Instead of variants: learn from each concept's first N images."),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Learn every variant of every concept, and compare reconstruction and editability."""
    from textinv_ray.experiments import ablation
    from textinv_ray.experiments import image_counts as sizes

    try:
        # By default all variants take the same number of steps.
        settings = JobConfig.load(config, ["stopping.rule=none", *(overrides or ())])
        if set_sizes is not None:
            if variants:
                raise UserError("--set-sizes is an experiment of its own: leave --variants out")
            numbers = sizes.parse(set_sizes)
            code = sizes.ablate(manifest, settings, output=output, sizes=numbers, seeds=seeds, limit=limit)
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
