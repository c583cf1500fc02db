"""What the scheduler and its callers say to each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from textinv_ray.service.scheduling.leases import Event, Lease


class RowSource(Protocol):
    """What the feed reads: a `preparation.Preparation`."""

    def iter_rows(self, wanted: Collection[str]) -> Iterable[Mapping[str, Any]]:
        """Prepared rows of these concepts."""


@dataclass(frozen=True)
class Answer:
    """To a worker that asked for work."""

    leases: tuple[Lease, ...]
    over: bool
    """There is nothing more for this worker, ever. Without leases and not over: ask again later."""
    no_pending: bool = False
    """Something more comes only if another worker loses what it has."""


@dataclass(frozen=True)
class Orders:
    """To a worker's sign of life."""

    lost: tuple[str, ...]
    """Concepts that are no longer the worker's: drop them."""
    stop: bool
    """Write checkpoints and leave."""


@dataclass(frozen=True)
class Status:
    """Where the job stands."""

    done: int
    failed: int
    skipped: int
    running: int
    over: bool
    steps_computed: int
    steps_reached: int
    steps_redone: int
    events: tuple[Event, ...]
    cursor: int
    """For the next call."""
    problem: str
    """Why the job can't go on; empty while it can."""
