"""lock.json: which job holds an output, whether it lives, and what it waits for. `driver/lock.py` writes it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from textinv_ray.service.store.records import Record

NAME = "lock.json"


class Holder(Record):
    """The job that holds an output: lock.json."""

    owner: str
    """Random, of this run."""
    host: str
    """Name of its machine."""
    place: str
    """The set of processes that `pid` is one of: see `_place`."""
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    """Of the driver."""
    started: Annotated[float, Field(ge=0, lt=1e11)]
    """When the process was started, as `lock.py` tells it: another process may get its pid later."""
    beat: Annotated[int, Field(ge=0, lt=2**63)]
    """Rises while the job lives."""
    waiting_for: str = ""
    """What keeps the first worker from starting, such as "waiting for 1 GPU: the cluster has 0"; empty: nothing."""
