"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from textinv_ray.config.presets import preset_names
from textinv_ray.util.errors import UserError


def _presets(incomplete: str) -> Iterator[str]:
    """For the shell's completion."""
    return (name for name in preset_names() if name.startswith(incomplete))


def output_option(what: str, default: str, *, place: str = "Folder") -> Any:
    """The option -o/--output, the same in every command that writes something.

    `what`: is written there. `default`: where it goes otherwise. `place`: "Folder" or "File".
    """
    return typer.Option(
        "--output",
        "-o",
        metavar="URI",
        help=f"{place} or URI (s3://...) for {what}. Default: {default}.",
        show_default=False,
    )


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
        autocompletion=_presets,
        help=f"Preset ({', '.join(preset_names())}) or YAML file; `textinv presets` lists them. "
        "Default: mini, for the bundled model.",
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
PresetArgument = Annotated[
    str | None,
    typer.Argument(metavar="NAME", autocompletion=_presets, help="Print the settings of this preset."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print the messages of the libraries as well.")
]


def commands_of(program: typer.Typer) -> dict[str, TyperCommand]:
    """All commands by what is typed after `textinv`, those of groups such as `predictor fit` as well."""
    group = get_command(program)
    assert isinstance(group, TyperGroup)
    found: dict[str, TyperCommand] = {}
    for name, command in group.commands.items():
        parts = command.commands if isinstance(command, TyperGroup) else {"": command}
        found |= {
            f"{name} {part}".strip(): one for part, one in parts.items() if isinstance(one, TyperCommand)
        }
    return found


def ids(only: str | None) -> list[str] | None:
    """The concept ids of `--only`; none when it wasn't given. Raises UserError when it names none."""
    if only is None:
        return None
    found = [part.strip() for part in only.split(",") if part.strip()]
    if not found:
        raise UserError(f"--only {only!r} names no concept: give ids as in --only a,b, or omit it")
    return found
