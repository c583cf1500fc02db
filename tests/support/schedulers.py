"""Schedulers over rows that a test makes."""

from __future__ import annotations

from typing import Any

from tests.support.rows import Rows
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.store import Store


def make(rows: Rows, store: Store, **options: Any) -> Scheduler:
    """A scheduler that has read nothing yet."""
    keys = {f"c{index}": Key(f"row {index}", f"stamp {index}") for index in range(100)}
    return Scheduler(
        rows, keys, store.uri, **{"ahead": 100, "lease_timeout_s": 60, "max_attempts": 2, **options}
    )


def ready(rows: Rows, store: Store, **options: Any) -> Scheduler:
    """A scheduler that has read all its rows."""
    scheduler = make(rows, store, **options)
    scheduler.read()
    return scheduler


def ids(scheduler: Scheduler, worker: str, count: int) -> list[str]:
    """Takes leases. Returns of which concepts."""
    return [lease.concept_id for lease in scheduler.take(worker, count).leases]
