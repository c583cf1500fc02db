"""How many workers a cluster holds, what each reserves, and what they wait for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from textinv_ray.config.job import JobConfig
from textinv_ray.config.labels import matches, shown
from textinv_ray.util.errors import UserError

# CPUs that a task of the preparation reserves: so little that it fits beside workers that take all CPUs.
_PREPARE_CPUS = 0.1


@dataclass(frozen=True)
class WorkerLayout:
    """How many workers, and what each reserves. As a string: for the user's eyes, such as "2, 1 GPU each"."""

    workers: int
    cpus: float
    """Of one worker: a little less than configured, so that tasks of the preparation fit beside all of them."""
    gpus: float
    """Of one worker; 0: it learns on the CPU."""
    prepare_cpus: float
    """Of one task that prepares images."""
    nodes: str = ""
    """Which nodes workers run on; empty: all."""

    @classmethod
    def of(cls, config: JobConfig, resources: Mapping[str, float], concepts: int) -> WorkerLayout:
        """The layout by the configuration; what it leaves to "auto", by the cluster's resources.

        `resources`: of the nodes that workers may run on, as of `resources_for`. There are never more workers than
        concepts. Raises UserError for a configuration that needs a GPU where there is none.
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
        nodes = ", or else ".join(map(shown, service.label_selectors)) if service.label_selector else ""
        return cls(min(workers, concepts), max(cpus - _PREPARE_CPUS, cpus / 2), gpus, _PREPARE_CPUS, nodes)

    def missing(self, resources: Mapping[str, float]) -> str:
        """What a worker waits for that the cluster doesn't have, as a line; empty when it has all.

        `resources`: as for `of`.
        """
        for name, needed in (("GPU", self.gpus), ("CPU", self.cpus)):
            there = resources.get(name, 0)
            if needed > there:
                plural = "" if needed <= 1 else "s"
                where = f" on {self.nodes}" if self.nodes else ""
                return f"waiting for {math.ceil(needed)} {name}{plural}{where}: the cluster has {there:g}"
        return ""

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, as Ray counts them."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def occupied(self, resources: Mapping[str, float], available: Mapping[str, float]) -> str:
        """What a worker waits for that others use, as a line; empty when there is room.

        `resources`: as for `of`. `available`: what is free of them.
        """
        for name, needed in reversed(self.resources.items()):
            free = available.get(name, 0)
            if needed > free:
                plural = "" if needed <= 1 else "s"
                of_all = f"{free:g} of the cluster's {resources.get(name, 0):g}"
                return f"waiting for {math.ceil(needed)} {name}{plural}: {of_all} are free"
        return ""

    def __str__(self) -> str:
        each = f"{self.gpus:g} GPU" if self.gpus else "on the CPU"
        on = f", on {self.nodes}" if self.nodes else ""
        return f"{self.workers}, {each}{' each' if self.workers > 1 else ''}{on}"


def resources_for(config: JobConfig, nodes: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The resources of the nodes that workers may run on, by `service.label_selector` or one of its fallbacks.

    `nodes`: as of `ray.nodes()`.
    """
    found: Counter[str] = Counter()
    for node in nodes:
        labels = node["Labels"]
        if node["Alive"] and any(matches(selector, labels) for selector in config.service.label_selectors):
            found.update(node["Resources"])
    return dict(found)


def waits_for_room(layout: WorkerLayout) -> bool:
    """Whether a trainer of one worker has asked Ray for its resources and not got them."""
    entries = ray.util.placement_group_table().values()
    wanted = layout.resources
    return any(entry["state"] == "PENDING" and wanted in entry["bundles"].values() for entry in entries)
