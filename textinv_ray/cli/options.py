"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from textinv_ray.util.errors import UserError

ManifestArgument = Annotated[
    str, typer.Argument(metavar="MANIFEST", help="Parquet file: a path or an fsspec URI.")
]
OutputArgument = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="The --output of a job: a folder or a URI.")
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME|PATH",
        help="Preset (mini, mini-sdxl, sd15, sd21, sdxl, sdxl-fast, sd35, flux, sana, klein, paper, quick, bias) or "
        "YAML file. Default: mini, for the bundled model.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Override one setting, such as training.steps=500. Repeatable.",
    ),
]
OnlyOption = Annotated[
    str | None,
    typer.Option(
        "--only", metavar="ID,ID", help="Only these concepts (their concept_id, separated by commas)."
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database. Default: MLFLOW_TRACKING_URI, else mlflow.db beside the output.",
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print the messages of the libraries as well.")
]


def ids(only: str | None) -> list[str] | None:
    """The concept ids of `--only`; none when it wasn't given. Raises UserError when it names none."""
    if only is None:
        return None
    found = [part.strip() for part in only.split(",") if part.strip()]
    if not found:
        raise UserError(f"--only {only!r} names no concept: give ids as in --only a,b, or omit it")
    return found
