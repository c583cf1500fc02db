"""Where MLflow is, and how to open it."""

from __future__ import annotations

import os
from pathlib import Path

from textinv_ray.config.job import JobConfig
from textinv_ray.service.store.store import Store
from textinv_ray.util.redact import redact


def default_uri(store: Store) -> str:
    """The database beside local results; mlflow.db in the working directory for remote ones."""
    folder = Path(store.root) if store.is_local else Path.cwd()
    return f"sqlite:///{folder / 'mlflow.db'}"


def ui_command(uri: str) -> str:
    """What a user does to open MLflow: a command, or an address."""
    if uri.startswith(("http://", "https://")):
        return f"open {redact(uri)}"
    return f"mlflow ui --backend-store-uri {redact(uri)}"


def resolve_uri(config: JobConfig, store: Store) -> str:
    """The configured one, MLFLOW_TRACKING_URI, or a database beside the results."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)
