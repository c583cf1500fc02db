"""The commands of `textinv` about learned words: generate, generate-many, export, evaluate, compare, words."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

import typer

from textinv_ray.cli.options import (
    OnlyOption,
    OutputArgument,
    SetOption,
    TrackingOption,
    VerboseOption,
    ids,
    output_option,
)
from textinv_ray.cli.outputs import (
    approved_words,
    concept_runs,
    open_store,
    open_target,
    quiet_libraries,
    target_file,
)
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact
from textinv_ray.util.terminal import PlainConsole, say

SHOWN_WORDS = 20
"""The most words that are listed."""
LearnedConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME|PATH",
        help="Preset or YAML file. Default: the configuration that the words were learned with.",
    ),
]
WordsOption = Annotated[
    list[str],
    typer.Option(
        "--words",
        "-w",
        metavar="OUTPUT|FILE",
        help="Output of a job (folder or URI), or a .safetensors file of words. Repeatable.",
    ),
]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Sampling steps.")]
GuidanceOption = Annotated[float | None, typer.Option(min=1.0, help="Guidance scale.")]


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command()(generate)
    app.command("generate-many")(generate_many)
    app.command()(export)
    app.command()(evaluate)
    app.command()(compare)
    app.command("words")(list_words)


def generate(
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", help="May contain learned words: 'a drawing of <cat> as <ink>'."),
    ],
    words: WordsOption,
    number: Annotated[int, typer.Option("-n", min=1, max=1024, help="Number of pictures.")] = 4,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first picture; the next pictures have the next seeds.")
    ] = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="Negative prompt; may contain learned words.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Side in pixels, a multiple of 8.")
    ] = None,
    output: Annotated[str | None, output_option("the pictures", "generated/<prompt>")] = None,
    config: LearnedConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Draw pictures of a prompt with learned words: one file per seed, and a grid of all."""
    if size is not None and size % 8:
        raise UserError(f"--size {size} is not a multiple of 8")
    if seed + number > 2**63:
        raise UserError(f"--seed {seed}: with -n {number}, the last seed is above 2**63 - 1")

    quiet_libraries()
    from textinv_ray.service.batch import generate as generating
    from textinv_ray.service.library.lexicon import Lexicon

    lexicon = Lexicon(words)
    job = generating.settings(lexicon, config, overrides or (), steps, guidance)
    request = generating.Request(
        prompt=prompt,
        words=lexicon.words_in(f"{prompt}\n{negative_prompt or ''}"),
        negative_prompt=negative_prompt,
        seed=seed,
        count=number,
        size=size,
    )
    store = open_target(f"generated/{_folder(prompt, negative_prompt)}" if output is None else output)
    names = generating.one(request, lexicon, job, store)
    say(f"{store.shown}/{names[0]}: {', '.join(names[1:])}")


def generate_many(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="Parquet file with the column prompt and optionally negative_prompt, seed, count, size, guidance.",
        ),
    ],
    words: WordsOption,
    output: Annotated[str, output_option("the pictures and index.parquet", "generated")] = "generated",
    steps: StepsOption = None,
    config: LearnedConfigOption = None,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Draw the pictures of a table of prompts, on Ray. Rows that are done are skipped."""
    quiet_libraries()
    from textinv_ray.service.batch import generate as generating
    from textinv_ray.service.driver.console import captured
    from textinv_ray.service.driver.environment import log_file
    from textinv_ray.service.library.lexicon import Lexicon

    lexicon = Lexicon(words)
    job = generating.settings(lexicon, config, overrides or (), steps, None)
    store = open_target(output)
    with log_file(store) as log, captured(log, verbose) as console:
        code = generating.many(prompts, lexicon, job, store, console)
    raise typer.Exit(code)


def export(
    source: OutputArgument,
    format_name: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="diffusers, a1111 or comfyui.")
    ],
    output: Annotated[str | None, output_option("the files", "export/<format>")] = None,
    only: OnlyOption = None,
    approved: Annotated[
        bool,
        typer.Option(
            "--approved",
            help="Only words that reviewers approved: in `textinv review`, or by tags in MLflow.",
        ),
    ] = False,
    prefix: Annotated[
        str | None, typer.Option(help="Prefix of file names. Default: ti- for a1111, otherwise none.")
    ] = None,
    towards_initializer: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="How far to move each word back to what it started from: it then edits better and resembles less.",
        ),
    ] = 0.0,
    tracking_uri: TrackingOption = None,
) -> None:
    """Write the learned words as files for another program, and words.csv with what each is called there."""
    quiet_libraries()
    from textinv_ray.service.library import export as exporting

    store = open_store(source)
    target = open_target(f"export/{format_name}" if output is None else output)
    exported = exporting.export(
        store,
        format_name,
        target,
        only=ids(only),
        approved=approved_words(store, tracking_uri) if approved else None,
        prefix=prefix,
        towards_initializer=towards_initializer,
    )
    for word in exported[:SHOWN_WORDS]:
        say(f"{word.file}: write {word.in_prompt}")
    if len(exported) > SHOWN_WORDS:
        say(f"... and {len(exported) - SHOWN_WORDS} more")
    number = "1 word" if len(exported) == 1 else f"{len(exported)} words"
    say(f"{number} in {target.shown}, listed in {exporting.LIST}")


def evaluate(
    output: OutputArgument,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            "--preset",
            metavar="NAME|PATH",
            help="quick (4 images a prompt), paper (64 images, 50 DDIM steps), dreambench, customconcept101, "
            "dreambench_plus, or a YAML file.",
        ),
    ] = "quick",
    only: OnlyOption = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="One more encoder, or another of that name: a folder, URI or Hub id of a CLIP, SigLIP, DINO, DINOv2, "
            "DINOv3 or ViT model. Repeatable.",
        ),
    ] = None,
    dino: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The same as --scorer dino=MODEL.")
    ] = None,
    holdout: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Compare with N of the images that data.holdout kept from learning; 0: with the training images. "
            "Default: with all held-out images, if there are any.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder of the protocol's data set, where its prompts lie there."),
    ] = None,
    overrides: SetOption = None,
    tracking_uri: TrackingOption = None,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Write nothing to MLflow.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Score every learned word: reconstruction, editability, and references. Words that have scores are skipped."""
    quiet_libraries()
    from textinv_ray.service.batch import evaluate as evaluating
    from textinv_ray.service.driver.console import captured
    from textinv_ray.service.driver.environment import log_file

    store = open_target(output)
    scorers = [*(scorer or ()), *([f"dino={dino}"] if dino is not None else [])]
    todo = evaluating.plan(store, protocol, overrides or (), scorers, data, holdout)
    with log_file(store) as log, captured(log, verbose) as console:
        code = evaluating.evaluate(store, todo, console, only=ids(only))
        if todo.config.tracking.enabled and not no_tracking:
            try:
                evaluating.log(store, todo, concept_runs(store, tracking_uri), console)
            except UserError as error:  # the scores are in the store; the next run of this command catches up
                console.print(f"not written to MLflow: {error}")
    raise typer.Exit(code)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="The --output of a job: a folder or a URI.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one, with concepts of the same names.")],
    output: Annotated[str, output_option("the report", "compare.html", place="File")] = "compare.html",
    score: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Score that concepts are ranked by. Default: the judge's, else CLIP's."
        ),
    ] = None,
) -> None:
    """Compare two outputs: which words got better and by how much, with a paired test of every score."""
    from textinv_ray.service.views import compare as comparing

    one, other = open_store(first), open_store(second)
    found = comparing.compare(one, other, score)
    comparing.show(PlainConsole(), found)
    target, name = target_file(output)
    comparing.write(found, one, other, target, name)
    say(f"report: {redact(output)}")


def list_words(
    output: OutputArgument,
    like: Annotated[
        str | None, typer.Option(metavar="WORD", help="List the words nearest to this one, such as '<cat>'.")
    ] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="Number of lines.")] = SHOWN_WORDS,
) -> None:
    """List the learned words: norms, nearest words of the vocabulary, most similar pairs of concepts."""
    quiet_libraries()
    from textinv_ray.service.library import listing

    for line in listing.lines(open_store(output), like, number):
        say(line)


def _folder(prompt: str, negative_prompt: str | None) -> str:
    """A folder's name for a prompt: its words. Where these don't say all of it, a digest follows, so that the pictures
    of two prompts don't share a folder."""
    text = re.sub(r"[<>]", "", prompt)
    words = "-".join(re.findall(r"[A-Za-z0-9]+", text))[:80].lower()
    if "<" in prompt and words == re.sub(r" +", "-", text) and not negative_prompt:
        return words
    digest = hashlib.sha256(f"{prompt}\n{negative_prompt or ''}".encode()).hexdigest()[:8]
    return f"{words or 'pictures'}-{digest}"
