"""Where MLflow is, and how to open it."""

from __future__ import annotations

import os
from pathlib import Path

from textinv_ray.config.job import JobConfig
from textinv_ray.service.store.records import JobRecord
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact
from textinv_ray.util.text import one_line

_LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` listens


def default_uri(store: Store) -> str:
    """The database beside local results; mlflow.db in the working directory for remote ones."""
    folder = Path(store.root) if store.is_local else Path.cwd()
    return f"sqlite:///{folder / 'mlflow.db'}"


def how_to_open(uri: str, place: str = "") -> str:
    """What a user does to open MLflow: an address, for a database with the command that serves it.

    place: within MLflow's interface: see `shown.place`.
    """
    if uri.startswith(("http://", "https://")):
        return redact(uri).rstrip("/") + place
    command = f"mlflow ui --backend-store-uri {redact(uri)}"
    return f"{command}\n  then {_LOCAL}{place}" if place else command


def resolve_uri(config: JobConfig, store: Store) -> str:
    """The configured one, MLFLOW_TRACKING_URI, or a database beside the results."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)


def uri_of_output(given: str | None, job: JobRecord, store: Store) -> str:
    """Where the runs of a stored job are: `given` (--tracking-uri), MLFLOW_TRACKING_URI, or the database beside it.

    Raises UserError when job.json names another place. An output may come from a stranger, and whoever is named there
    would get the credentials of this environment.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)
    named = job.config(store.shown).tracking.uri
    if not given and named and named != uri:
        shown = one_line(redact(named), 300)
        raise UserError(
            f"{store.shown}: its job.json says that it wrote to MLflow at {shown}, which isn't followed by itself: "
            f"give --tracking-uri {shown}, or another"
        )
    return uri


def has_view(store: Store) -> bool:
    """Whether the job of an output wrote to MLflow, as far as can be known without asking a server."""
    job = store.job()
    if job is None:
        return False
    tracking = job.config(store.shown).tracking
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)
    is_missing = uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()
    return tracking.enabled and not is_missing
