"""`textinv track`: writes a job from its store to any tracking server. Doing it twice changes nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.job import set_behind
from textinv_ray.service.store.records import JobRecord
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.mirror import MLflowMirror, run_keys
from textinv_ray.service.tracking.refusals import reason
from textinv_ray.service.tracking.uri import default_uri, how_to_open, resolve_uri, uri_of_output
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import redact

_SAY_EVERY = 100  # concepts
_SHOWN_REFUSALS = 20
_STATUS: Mapping[int, str] = {ExitCode.DONE: "FINISHED", ExitCode.INCOMPLETE: "FAILED"}
_VIEWS = ("results.parquet", "report.html")
# Shorter than in a job: a person waits for the answer.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}


def rebuild(output: str, tracking_uri: str | None, experiment: str | None, console: Console) -> None:
    """Writes what MLflow lacks of the job at `output`: concepts that have ended, and what others have so far.

    tracking_uri, experiment: none for those of the job. Raises UserError when there is no job, or when MLflow
    can't be written to. What was written until then stays, and the next call goes on from there.
    """
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    store = Store(output)
    job = store.job()
    if job is None:
        raise UserError(f"{store.shown}: no job.json there; give the --output of a job")
    config = job.config(store.shown)
    uri = uri_of_output(tracking_uri, job, store)
    # A database that lies in an output is as much a stranger's as the output
    within = store.root if not tracking_uri and uri == default_uri(store) and store.is_local else ""
    mirror = MLflowMirror(store, uri, experiment or config.tracking.experiment, within)
    refused: list[str] = []
    stored = StoredResults.read(store)
    try:
        mirror.open()
        behind = [*mirror.missing(run_keys(stored)), *_begun(store, stored)]
        console.print(f"{store.shown}: {len(behind)} concepts to write")
        for number, concept_id in enumerate(behind, 1):
            refusal = mirror.update(concept_id)
            if refusal:
                refused.append(f"MLflow refuses a part of {concept_id}: {refusal}")
            if number % _SAY_EVERY == 0:
                console.print(f"  {number} of {len(behind)}")
        _close(mirror, store, stored, job)
        if uri == resolve_uri(config, store) and job.ended_at is not None:
            set_behind(store, False)
    except StoreError:
        raise
    except Exception as error:
        raise UserError(f"MLflow at {redact(uri)} can't be written to: {reason(error)}") from None
    for line in refused[:_SHOWN_REFUSALS]:
        console.print(line)
    if len(refused) > _SHOWN_REFUSALS:
        console.print(f"... and a part of {len(refused) - _SHOWN_REFUSALS} more")
    console.print(f"MLflow: {how_to_open(uri, mirror.place)}")


def _begun(store: Store, stored: StoredResults) -> list[str]:
    """Concepts that have begun and not ended."""
    ended = {result.concept_id for result in stored.results}
    ended |= {failure.concept_id for failure in stored.failures}
    return [concept_id for concept_id in store.concepts() if concept_id not in ended]


def _close(mirror: MLflowMirror, store: Store, stored: StoredResults, job: JobRecord) -> None:
    """Writes totals and files. A job that hasn't ended stays RUNNING in MLflow; its driver will end it."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in _VIEWS:
            data = store.read(name)
            if data is not None:
                files.append(Path(folder) / name)
                files[-1].write_bytes(data)
        if job.ended_at is None:
            mirror.write_decisions()
            mirror.summarise(stored, files)
        else:
            mirror.close(_STATUS.get(job.exit_code or 0, "KILLED"), stored, files)
