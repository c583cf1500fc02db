"""Where a job stands, as metrics."""

from __future__ import annotations

from textinv_ray.service import metrics
from textinv_ray.service.scheduling.leases import Leases


class Report:
    """Reports a table of leases, again and again. Of its counts that grow, what came since the last time."""

    def __init__(self) -> None:
        self._losses = self._redone = 0

    def __call__(self, table: Leases, planned: int) -> None:
        """`planned`: concepts that the job was to learn."""
        counts = {"done": table.done + table.skipped, "failed": table.failed, "running": table.running}
        for state, count in {**counts, "waiting": planned - sum(counts.values())}.items():
            metrics.CONCEPTS.set(count, state=state)
        metrics.QUEUE.set(table.waiting)
        metrics.WORKERS.set(table.workers)
        metrics.LEASE_LOSSES.add(table.losses - self._losses)
        metrics.STEPS_REDONE.add(table.steps_redone - self._redone)
        self._losses, self._redone = table.losses, table.steps_redone
