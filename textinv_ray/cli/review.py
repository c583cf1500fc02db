"""`textinv review`: the page on which people decide about words; `textinv register`: words in MLflow's registry."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from textinv_ray.cli.options import OnlyOption, OutputArgument, TrackingOption, ids
from textinv_ray.cli.outputs import approved_words, concept_runs, open_store, quiet_libraries
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.terminal import say
from textinv_ray.util.text import one_line

if TYPE_CHECKING:
    from textinv_ray.service.reviewing.mlflow_tags import DecisionTags
    from textinv_ray.service.store.store import Store

_MLFLOW_S = 20.0  # after the page was closed
_SHOWN_REFUSED = 20
_SHOWN_NAMES = 20


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command()(review)
    app.command()(register)


def review(
    output: OutputArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Beyond this machine, the page has no encryption.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 0,
    reviewer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who decides. Default: your user name.")
    ] = None,
    import_from: Annotated[
        str | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Store the decisions of a file that report.html has saved, and end.",
        ),
    ] = None,
    tracking_uri: TrackingOption = None,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Write nothing to MLflow.")] = False,
) -> None:
    """Decide which learned words are accepted, on a page in the browser. Decisions are stored in OUTPUT/reviews.

    Ctrl-C ends it. `textinv export --approved` exports what was accepted.
    """
    quiet_libraries()
    store = open_store(output)
    name = reviewer or _user()
    tags = None if no_tracking else _tags(store, tracking_uri)
    if import_from is not None:
        _import(store, import_from, name, tags)
        return

    from textinv_ray.service.reviewing.serve import ReviewServer

    page = ReviewServer(
        store, reviewer=name, host=host, port=port, on_decision=tags.note if tags else lambda _: None
    )
    if not page.is_loopback:
        say("warning: the page can be reached from other machines, without encryption", err=True)
    say(f"review of {store.shown}, with {page.count} concepts; Ctrl-C ends it:")
    typer.echo(f"  {page.url}")  # `say` would remove the token
    page.run()
    _finish(tags, store)


def register(
    output: OutputArgument,
    approved: Annotated[
        bool,
        typer.Option("--approved", help="Only words that reviewers approved, with the alias `approved`."),
    ] = False,
    only: OnlyOption = None,
    prefix: Annotated[
        str, typer.Option(help="Before the concept_id in the names of registered models.")
    ] = "textinv.",
    tracking_uri: TrackingOption = None,
) -> None:
    """Put learned words into MLflow's model registry: a registered model per concept, a version per word.

    With --approved, models:/textinv.CONCEPT_ID@approved is the approved version; an approval that was taken back loses
    the alias.
    """
    quiet_libraries()
    from textinv_ray.service.library import register as registering

    store = open_store(output)
    wanted = approved_words(store, tracking_uri) if approved else None
    outcome = registering.register(
        store, concept_runs(store, tracking_uri), only=ids(only), approved=wanted, prefix=prefix
    )
    for name in outcome.new[:_SHOWN_NAMES]:
        say(f"{name}: a new version")
    if len(outcome.new) > _SHOWN_NAMES:
        say(f"... and {len(outcome.new) - _SHOWN_NAMES} more")
    for name in outcome.withdrawn:
        say(f"{name}: no longer approved")
    say(f"{len(outcome.new)} registered, {len(outcome.known)} were there already")
    if outcome.without_run:
        few = ", ".join(outcome.without_run[:5]) + (", ..." if len(outcome.without_run) > 5 else "")
        say(
            f"not registered, MLflow has no run of their word: {few}; run `textinv track {store.shown}`",
            err=True,
        )
        raise typer.Exit(ExitCode.INCOMPLETE)


def _import(store: Store, path: str, reviewer: str, tags: DecisionTags | None) -> None:
    """Stores the decisions of a file. Exit code INCOMPLETE when some of them couldn't be."""
    from textinv_ray.service.reviewing import decision_file

    found = decision_file.read(path)
    outcome = decision_file.store_all(store, found, reviewer)
    for decision in outcome.stored:
        if tags:
            tags.note(decision)
    _finish(tags, store)
    say(f"{store.shown}: {len(outcome.stored)} decisions stored, {outcome.known} were there already")
    for concept_id, why in outcome.refused[:_SHOWN_REFUSED]:
        say(one_line(f"not stored: {concept_id}: {why}", 300), err=True)
    if len(outcome.refused) > _SHOWN_REFUSED:
        say(f"not stored: ... and {len(outcome.refused) - _SHOWN_REFUSED} more", err=True)
    if outcome.refused:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _tags(store: Store, tracking_uri: str | None) -> DecisionTags | None:
    """The thread that writes decisions to MLflow; none where the job wrote nothing to it."""
    from textinv_ray.service.reviewing.mlflow_tags import DecisionTags
    from textinv_ray.service.tracking.uri import has_view

    if tracking_uri is None and not has_view(store):
        return None
    return DecisionTags(lambda: concept_runs(store, tracking_uri), lambda text: say(text, err=True))


def _finish(tags: DecisionTags | None, store: Store) -> None:
    missing = tags.finish(_MLFLOW_S) if tags else 0
    if missing:
        say(f"MLflow lacks {missing} decisions; `textinv track {store.shown}` writes them", err=True)


def _user() -> str:
    """The name of who runs the command."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a name for its user
        raise UserError("this user has no name; give one with --reviewer") from None
