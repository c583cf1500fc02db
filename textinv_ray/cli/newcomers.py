"""The commands of `textinv` to begin with: demo, presets."""

from __future__ import annotations

from typing import Annotated

import typer

from textinv_ray.cli.options import (
    OnlyOption,
    PresetArgument,
    SetOption,
    VerboseOption,
    ids,
    output_option,
)
from textinv_ray.config.machine import load_config
from textinv_ray.config.presets import preset_file, preset_names, purpose_in_a_line
from textinv_ray.util.bundled import example_manifest
from textinv_ray.util.errors import UserError
from textinv_ray.util.terminal import say

_DEMO_OUTPUT = "outputs/demo"


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command()(demo)
    app.command()(presets)


def demo(
    output: Annotated[str | None, output_option("the results", _DEMO_OUTPUT)] = None,
    overrides: SetOption = None,
    only: OnlyOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Learn the eight example concepts with the bundled model: in minutes on two CPU cores, without a download."""
    manifest = example_manifest()
    if manifest is None:
        raise UserError(
            "the example concepts aren't installed: install the package from its wheel or its source"
        )
    job = load_config(None, overrides, [f"service.output={_DEMO_OUTPUT}"])

    from textinv_ray.service.driver import run

    code = run.invert(str(manifest), job, output=output, only=ids(only), verbose=verbose)
    raise typer.Exit(code)


def presets(name: PresetArgument = None) -> None:
    """List the presets for --config, or print the settings of one."""
    if name is not None:
        say(preset_file(name).read_text(encoding="utf-8").rstrip("\n"))
        return
    names = preset_names()
    for known in names:
        say(f"{known:<{max(map(len, names))}}  {purpose_in_a_line(known)}")
