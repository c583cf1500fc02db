"""The commands `textinv predictor ...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from textinv_ray.cli.options import ConfigOption, SetOption, output_option
from textinv_ray.cli.outputs import quiet_libraries, target_file
from textinv_ray.config.job import JobConfig
from textinv_ray.config.machine import load_config
from textinv_ray.config.training import is_word_file
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import in_a_line
from textinv_ray.util.redact import redact
from textinv_ray.util.terminal import say

_FILE = "predictor.safetensors"
commands = typer.Typer(
    no_args_is_help=True, help="Predict words from images, by the words of finished jobs.", epilog=in_a_line()
)


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(commands, name="predictor")


@commands.command()
def fit(
    outputs: Annotated[
        list[str], typer.Argument(metavar="OUTPUT...", help="The --output of jobs: folders or URIs.")
    ],
    output: Annotated[str, output_option("the predictor, a .safetensors file", _FILE, place="File")] = _FILE,
    pictures: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Draw N words that are predicted without their own concepts, and what learning began from, and "
            "compare both with the concepts' images.",
        ),
    ] = 0,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Fit the maps further through the model: so many steps on the words' images.",
        ),
    ] = 0,
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="With the words' images, for --refine; by default that of each output's job."
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Fit a map from image features to words, for `init_from`.

    Ridge regression, or the variant of it that predicts held-out words best, on the words of the outputs and the
    scoring model's features of their training images. The same outputs give the same file. --pictures and --refine take
    the settings of the first output's job, or those of --config.
    """
    if not is_word_file(output):
        raise UserError(f"--output {redact(output)!r}: name a .safetensors file")
    if manifest and not refine:
        raise UserError("--manifest is for --refine, which isn't given")
    quiet_libraries()
    from textinv_ray.service.library import predicting

    target, name = target_file(output)
    target.check_writable()
    fitted, examples, skipped = predicting.fit(outputs)
    settings = _settings(outputs[0], config, overrides) if refine or pictures else None
    if pictures and settings:
        from textinv_ray.service.library import likeness

        likeness.check(fitted, settings)
    if refine and settings:
        from textinv_ray.service.library import refinement

        fitted, without = refinement.refine(outputs, examples, fitted, settings, refine, manifest or ())
        if without:
            say(f"--refine goes without {without} words, whose images can't be found")
    if pictures and settings:
        fitted = replace(fitted, likeness=likeness.measure(examples, fitted, settings, pictures))
    for line in predicting.lines(fitted, skipped):
        say(line)
    target.write(name, fitted.to_bytes())
    say(f"written: {redact(output)}")


def _settings(output: str, config: str | None, overrides: Sequence[str] | None) -> JobConfig:
    """Of --config and --set; without --config those of the output's job, if it has one."""
    from textinv_ray.service.store.store import Store

    store = Store(output)
    job = None if config else store.job()
    return job.config(store.shown).override(overrides or ()) if job else load_config(config, overrides)
