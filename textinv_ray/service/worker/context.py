"""What the parts of a worker share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from textinv_ray.config.job import JobConfig
from textinv_ray.service.scheduling.protocol import SchedulerInterface
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker.active_concept import ActiveConcepts
from textinv_ray.service.worker.engine import Engine


@dataclass(frozen=True)
class WorkerContext:
    """One worker's surroundings, and what it holds."""

    name: str
    """Of the worker, unique in the job."""
    scheduler: SchedulerInterface
    store: Store
    engine: Engine
    config: JobConfig
    concepts: ActiveConcepts = field(default_factory=ActiveConcepts)
    lease_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the scheduler is asked for leases, is told what this worker holds, and gets back or fails what was
    held. It knows leases by worker and concept only: what is given back must not be a new lease of the same concept,
    and no heartbeat that names a concept may arrive after that was given back."""
