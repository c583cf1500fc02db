"""The commands `textinv predictor ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from textinv_ray.cli.options import output_option
from textinv_ray.cli.outputs import quiet_libraries
from textinv_ray.config.training import is_word_file
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import in_a_line
from textinv_ray.util.redact import redact
from textinv_ray.util.submitted_job import check_lasting
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
) -> None:
    """Fit a map from image features to words, for `init_from`.

    Ridge regression on the words of the outputs and the scoring model's features of their training images. The same
    outputs give the same file.
    """
    if not is_word_file(output):
        raise UserError(f"--output {redact(output)!r}: name a .safetensors file")
    check_lasting(output)
    quiet_libraries()
    from textinv_ray.service.library import predicting

    fitted, skipped = predicting.fit(outputs)
    for line in predicting.lines(fitted, skipped):
        say(line)
    predicting.write(output, fitted)
    say(f"written: {redact(output)}")
