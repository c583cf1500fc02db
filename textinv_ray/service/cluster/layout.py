"""How many workers a cluster holds, and what each reserves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError

_PREPARE_CPUS = (
    0.1  # What a task that prepares images reserves, so that it fits beside workers that take all CPUs.
)


@dataclass(frozen=True)
class WorkerLayout:
    """How many workers, and what each reserves."""

    workers: int
    cpus: float
    gpus: float
    prepare_cpus: float
    """Reserved by a task that prepares images."""

    @classmethod
    def of(cls, config: JobConfig, resources: dict[str, float], concepts: int) -> WorkerLayout:
        """By the configuration, what it leaves open by the cluster's resources; never more than concepts.

        Raises UserError for a configuration that needs a GPU where there is none.
        """
        service = config.service
        gpus = service.gpus_per_worker
        if gpus == "auto":
            gpus = 1.0 if resources.get("GPU", 0) >= 1 and config.model.device != "cpu" else 0.0
        if config.model.device == "cuda" and gpus == 0:
            raise UserError(
                "model.device is cuda, but the cluster has no GPU (or service.gpus_per_worker is 0)"
            )
        by_gpu = resources.get("GPU", 0) / gpus if gpus else math.inf
        fitting = max(1, math.floor(min(by_gpu, resources.get("CPU", 1) / service.cpus_per_worker)))
        workers = fitting if service.workers == "auto" else service.workers
        cpus = service.cpus_per_worker
        return cls(min(workers, concepts), max(cpus - _PREPARE_CPUS, cpus / 2), gpus, _PREPARE_CPUS)


def print_fleet(console: Console, size: WorkerLayout) -> None:
    """The workers."""
    each = f"{size.gpus:g} GPU" if size.gpus else "on the CPU"
    console.print(f"workers: {size.workers}, {each}{' each' if size.workers > 1 else ''}")
