"""job.json after it was begun: how a run ended, and whether MLflow has everything."""

from __future__ import annotations

import time

from textinv_ray.service.store.store import Store


def end(store: Store, exit_code: int) -> None:
    """Notes that a run is over, for those who look at the store alone."""
    job = store.job()
    if job:
        store.write_job({**job, "ended_at": time.time(), "exit_code": exit_code})


def is_behind(store: Store) -> bool:
    """Whether the last run ended before MLflow had everything."""
    job = store.job()
    return bool(job and job["mlflow_is_behind"])


def set_behind(store: Store, behind: bool) -> None:
    """Notes whether MLflow has everything."""
    job = store.job()
    if job:
        store.write_job({**job, "mlflow_is_behind": behind})
