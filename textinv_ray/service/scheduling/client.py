"""The scheduler actor, as its callers see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster.actors import lasting_here
from textinv_ray.service.cluster.layout import WorkerLayout
from textinv_ray.service.cluster.ray_internals import draining_nodes
from textinv_ray.service.store.keys import Key


def start_scheduler(
    rows: Any, keys: Mapping[str, Key], output: str, config: JobConfig, size: WorkerLayout
) -> Any:
    """The Scheduler actor."""
    from textinv_ray.service.scheduling.scheduler import Scheduler

    actor: Any = ray.remote(Scheduler)
    return actor.options(max_concurrency=32 + 2 * size.workers, **lasting_here()).remote(
        rows,
        keys,
        output,
        ahead=max(16, 4 * size.workers),
        workers=size.workers,
        lease_timeout_s=config.service.lease_timeout_s,
        max_attempts=config.service.max_attempts,
        began=time.time(),
        find_draining=draining_nodes,
    )
