"""`textinv`: the commands about jobs. Each parses its arguments, calls the library and prints what happened.

Exit codes: see textinv_ray/util/exit_codes.py.
Heavy libraries are imported only by the commands that need them.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import typer

from textinv_ray import __version__
from textinv_ray.cli import newcomers, predictor, review, sizing, studies, words
from textinv_ray.cli.options import (
    ConfigOption,
    ManifestArgument,
    OnlyOption,
    OutputArgument,
    SetOption,
    TrackingOption,
    VerboseOption,
    ids,
    output_option,
)
from textinv_ray.config.job import DEFAULT_PRESET, JobConfig
from textinv_ray.config.machine import load_config
from textinv_ray.config.model_families import UnsupportedModelError
from textinv_ray.manifest import checks
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode, in_a_line
from textinv_ray.util.redact import redact
from textinv_ray.util.terminal import PlainConsole, say

if TYPE_CHECKING:
    from textinv_ray.manifest.columns import Row
    from textinv_ray.manifest.reader import Manifest

app = typer.Typer(
    name="textinv",
    epilog=in_a_line(),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
newcomers.add_to(app)
sizing.add_to(app)

SHOWN_FILES = 20
"""The most skipped or renamed files that are listed."""
ROWS_AT_ONCE = 8
"""Rows whose images `validate --check-images` fetches side by side."""
_USUAL_RESOLUTION = 512  # of a model that can't be read


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"textinv_ray {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Learn words for thousands of concepts (Textual Inversion) from one Parquet manifest, on Ray."""


@app.command()
def invert(
    manifest: ManifestArgument,
    config: ConfigOption = None,
    output: Annotated[str | None, output_option("the results", "results")] = None,
    overrides: SetOption = None,
    only: OnlyOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Learn only the first N concepts.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="local|auto|ADDRESS",
            help="Ray to run on: one of its own, the one that `ray start` started here, or a cluster's address. "
            "Default: that of RAY_ADDRESS, else local.",
        ),
    ] = None,
    waves: Annotated[
        int | None,
        typer.Option(
            min=10,
            metavar="N",
            help="Learn N concepts plainly first; a predictor that is fitted on their words starts the others.",
        ),
    ] = None,
    wait_for_resources: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="MINUTES", help="End when no worker could start for so long."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print what would run; start nothing.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Learn a word for every concept of the manifest. Concepts that are done are skipped."""
    job = load_config(config, overrides)
    given = {
        "output": output,
        "ray": ray,
        "wait_for_resources_min": wait_for_resources,
        "waves": None if waves is None else job.service.waves.model_copy(update={"first": waves}),
    }
    given = {name: value for name, value in given.items() if value is not None}
    job = job.model_copy(update={"service": job.service.model_copy(update=given)})

    from textinv_ray.service.driver import run

    code = run.invert(
        manifest,
        job,
        output=job.service.output,
        only=ids(only),
        limit=limit,
        dry_run=dry_run,
        verbose=verbose,
        preset=config,
    )
    raise typer.Exit(code)


@app.command()
def status(
    output: OutputArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Print the state of a job, read from its output; works while the job runs and afterwards."""
    from textinv_ray.service.views import status as statuses

    found = statuses.read(output)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))  # in which control characters are escaped already
    else:
        statuses.show(PlainConsole(), found)


@app.command()
def track(
    output: OutputArgument,
    tracking_uri: TrackingOption = None,
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="MLflow experiment. Default: the job's.")
    ] = None,
) -> None:
    """Write to MLflow what it lacks of a job, read from the job's output. Idempotent."""
    from textinv_ray.service.tracking import rebuild as tracks

    tracks.rebuild(output, tracking_uri, experiment, PlainConsole())


@app.command("manifest")
def build_manifest(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Folder with one folder of images per concept, or a data set's folder."
        ),
    ],
    output: Annotated[
        str, output_option("the manifest", "manifest.parquet", place="File")
    ] = "manifest.parquet",
    embed: Annotated[
        bool,
        typer.Option("--embed", help="Store the images' bytes in the manifest, so that it can be moved."),
    ] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="DIR is the data set of an evaluation protocol: dreambench, customconcept101, dreambench_plus.",
        ),
    ] = None,
) -> None:
    """Make a manifest from DIR/<concept>/*.{jpg,png,webp,heic,...}.

    A concept.yaml in a concept's folder, or one concepts.yaml in DIR, may set every column but images:
    initializer_token, placeholder_token, learnable_property, steps, captions, ...
    """
    from textinv_ray.config.protocol import load
    from textinv_ray.manifest import build, data_sets

    if protocol is None:
        built = build.build(folder, output, embed=embed)
    else:
        built = data_sets.build(load(protocol), protocol, folder, output, embed=embed)
    for title, lines in (("skipped", built.skipped), ("renamed", built.renamed), ("note", built.notes)):
        for line in lines[:SHOWN_FILES]:
            say(f"{title}: {line}")
        if len(lines) > SHOWN_FILES:
            say(f"{title}: ... and {len(lines) - SHOWN_FILES} more")
    say(f"{redact(output)}: {_count(built.concepts, 'concept')}, {_count(built.images, 'image')}")
    if built.without_initializer:
        few = ", ".join(built.without_initializer[:5])
        more = ", ..." if len(built.without_initializer) > 5 else ""
        say(
            f"{_count(len(built.without_initializer), 'concept')} without initializer_token ({few}{more}): "
            "name a near word in concept.yaml, or set training.initializer_token for all"
        )


@app.command()
def validate(
    manifest: ManifestArgument,
    config: ConfigOption = None,
    overrides: SetOption = None,
    check_images: Annotated[
        bool, typer.Option("--check-images", help="Fetch and decode every image, too.")
    ] = False,
) -> None:
    """Check a manifest and print its errors by row and column."""
    job = load_config(config, overrides)

    from textinv_ray.manifest import vocabulary
    from textinv_ray.manifest.reader import Manifest
    from textinv_ray.model_files import places

    opened = Manifest.open(manifest, check_schema=False)
    try:
        files = places.open_model(job.model)
        tokenizers = vocabulary.load(job.model)
    except UnsupportedModelError:
        raise
    except UserError as error:
        tokenizers, family = {}, None
        say(f"not checked against the model's vocabulary: {error}", err=True)
    else:
        family = files.family
        family.check(job)
        if job.training.encoders:
            family.check_encoders(job.training.encoders, files.encoder_names)
    checks.check(opened, job, tokenizers, family=family, image_bytes=True)
    say(
        f"{redact(manifest)}: {_count(opened.num_rows, 'concept')}, "
        f"{_count(opened.count_images(), 'image')}; nothing wrong (checked with the configuration "
        f"{redact(config or DEFAULT_PRESET)})"
    )
    if check_images and (failed := _check_images(opened, job)):
        say(f"{_count(failed, 'concept')} would fail for an image", err=True)
        raise typer.Exit(ExitCode.INCOMPLETE)


def _check_images(manifest: Manifest, job: JobConfig) -> int:
    """Fetches and decodes every image and mask, of several rows at a time, and prints errors in the rows' order.

    Reads the words and predictors that concepts start from as well. Returns the number of concepts that would fail.
    """
    from textinv_ray.concepts import images, prepare
    from textinv_ray.concepts.predictor import Predictor
    from textinv_ray.concepts.settings import concept_seed, start_of
    from textinv_ray.config.training import is_file
    from textinv_ray.model_files import places
    from textinv_ray.service.models import sources

    def errors(row: Row) -> list[str]:
        wrong = images.problems(
            row["images"],
            base=manifest.base,
            config=job.data,
            resolution=job.data.resolution or resolution,
            seed=row.get("seed", concept_seed(job.training.seed, row["concept_id"])),
            masks=row.get("masks", ()),
            side_multiple=side_multiple,
        )
        found = [str(error) for error in wrong]
        start, _ = start_of(row, job)
        if is_file(start):
            try:
                word = prepare.starting_file(start, manifest.base, job)
                if isinstance(word, Predictor):
                    if identity:
                        count = row.get("num_vectors") or word.count_nearest(job.training.num_vectors)
                        prepare.check_predictor(word, start, job, identity, count)
                elif dims and (sizes := tuple(part.shape[1] for part in word.values())) != dims:
                    found.append(
                        f"init_from {redact(start)}: the word was learned for another model: its vectors have "
                        f"{_numbers(sizes)} numbers, the model's {_numbers(dims)}"
                    )
            except ValueError as error:
                found.append(str(error))
        return found

    try:
        dims, facts = places.open_model(job.model).embedding_dims, sources.facts(job.model)
        identity, resolution, side_multiple = facts.identity, facts.resolution, facts.family.side_multiple
    except (UserError, OSError, KeyError, ValueError):
        # What is wrong with the model was said before
        dims, identity, resolution, side_multiple = (), "", _USUAL_RESOLUTION, 8
    failed, rows = 0, manifest.placed_rows()
    with ThreadPoolExecutor(ROWS_AT_ONCE) as pool:
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            for (place, row), wrong in zip(some, pool.map(errors, [row for _, row in some]), strict=True):
                for error in wrong:
                    say(f"{place} ({row['concept_id']}): {error}")
                failed += bool(wrong)
    return failed


words.add_to(app)
review.add_to(app)
studies.add_to(app)
predictor.add_to(app)
for command in (*app.registered_commands, *predictor.commands.registered_commands):
    command.epilog = in_a_line()


def _numbers(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the `textinv` program and ends the process with its exit code. `arguments` default to the command line's."""
    try:
        if arguments is None:
            app(prog_name="textinv")  # by `python -m textinv_ray`, too
        else:
            app(args=list(arguments))
    except UserError as error:
        say(f"error: {error}", err=True)
        sys.exit(ExitCode.USER_ERROR)
    except Exception:
        say(traceback.format_exc(), err=True)
        say("error: a fault of textinv_ray itself; please report it with the lines above", err=True)
        sys.exit(ExitCode.FAULT)
