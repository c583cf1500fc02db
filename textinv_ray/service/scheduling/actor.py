"""The scheduler's actor on Ray."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from textinv_ray.service import metrics
from textinv_ray.service.cluster.actors import was_restarted
from textinv_ray.service.cluster.ray_internals import draining_nodes
from textinv_ray.service.scheduling.protocol import RowSource
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.keys import Key
from textinv_ray.util.logs import LogFormat, log_to_stderr
from textinv_ray.util.redact import redact


class SchedulerActor(Scheduler):
    """A Scheduler that starts with its process. Leases carry references to Ray's object store."""

    def __init__(
        self,
        rows: RowSource,
        keys: Mapping[str, Key],
        output: str,
        *,
        ahead: int,
        workers: int,
        lease_timeout_s: float,
        max_attempts: int,
        began: float,
        log_format: LogFormat,
    ) -> None:
        """See `Scheduler`. `was_restarted` is found out here: Ray calls this again when the process has died."""
        super().__init__(
            rows,
            keys,
            output,
            ahead=ahead,
            workers=workers,
            lease_timeout_s=lease_timeout_s,
            max_attempts=max_attempts,
            began=began,
            was_restarted=was_restarted(),
            keep=ray.put,
        )
        log_to_stderr(log_format)
        metrics.report(redact(output))
        self.start(draining_nodes)
