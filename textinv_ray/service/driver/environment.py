"""The surroundings of a driver: quiet libraries, job.log."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.store import Store
from textinv_ray.util.quiet import QUIET

_LOG_PATIENCE_S = 30.0  # A remote job.log that can't be written is waited for this long.
_DRIVER = {
    **QUIET,
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",  # job.log has a line of each concept, however alike they are
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def quiet() -> None:
    """Telemetry and progress bars of the libraries off, unless the environment says otherwise."""
    for name, value in _DRIVER.items():
        os.environ.setdefault(name, value)


@contextmanager
def log_file(store: Store) -> Iterator[Path]:
    """job.log of a local output; for a remote one, a local file that is added to what is there in the end.

    Nothing that was made for it stays when nothing was logged, as after a user's mistake.
    """
    if store.is_local:
        with store.without_empty_folders():
            path = store.local_file("job.log")
            was_there = path.exists()
            try:
                yield path
            finally:
                if not was_there and path.exists() and not path.stat().st_size:
                    path.unlink()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.log"
        try:
            yield path
        finally:
            if path.exists() and (new := path.read_bytes()):
                with suppress(StoreError):  # a store that refuses has been heard of before
                    patient = Store(store.uri, patience_s=_LOG_PATIENCE_S)
                    patient.write("job.log", (patient.read("job.log") or b"") + new)
