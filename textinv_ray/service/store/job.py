"""Changes to job.json after a run began: how it ended, and whether MLflow has everything."""

from __future__ import annotations

import time

from textinv_ray.service.store.store import Store
from textinv_ray.util.exit_codes import ExitCode


def end(store: Store, exit_code: int) -> None:
    """Records the end of the last run."""
    job = store.job()
    if job:
        store.write_job(job.model_copy(update={"ended_at": time.time(), "exit_code": exit_code}))


def is_behind(store: Store) -> bool:
    """Whether views may lack something that the store has: the last run was stopped or killed, or MLflow was away."""
    job = store.job()
    if job is None:
        return False
    return job.mlflow_is_behind or job.exit_code is None or job.exit_code > ExitCode.INCOMPLETE


def set_behind(store: Store, behind: bool) -> None:
    """Records whether MLflow lacks something."""
    job = store.job()
    if job:
        store.write_job(job.model_copy(update={"mlflow_is_behind": behind}))
