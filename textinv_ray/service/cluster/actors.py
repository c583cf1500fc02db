"""Options of Ray actors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypedDict, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")


class Call(Generic[T]):
    """A call of an actor that may take a while; meanwhile its caller looks after other things."""

    def __init__(self, reference: Any, get: Callable[[Any], T] = ray.get) -> None:
        """`reference`: of what the call returns. `get`: fetches it."""
        self._reference = reference
        self._get = get

    def answer(self, timeout_s: float) -> T | None:
        """What the call returned, if it did within `timeout_s` seconds. Raises what it raised."""
        ready, _ = ray.wait([self._reference], timeout=timeout_s)
        return self._get(self._reference) if ready else None


class ActorOptions(TypedDict):
    """Of `ActorClass.options`."""

    name: str
    num_cpus: float
    scheduling_strategy: NodeAffinitySchedulingStrategy
    max_restarts: int
    max_task_retries: int


def on_this_node(name: str) -> ActorOptions:
    """Options of an actor that outlives other nodes: on the caller's node, started again when its process dies.

    `name`: in Ray's dashboard, and unique in the job.
    Without an affinity, an actor that reserves no CPU may be placed on any other node and die with it.
    """
    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return {
        "name": name,
        "num_cpus": 0,
        "scheduling_strategy": strategy,
        "max_restarts": -1,
        "max_task_retries": -1,
    }


def was_restarted() -> bool:
    """Whether this process is an actor's that Ray started again after its process had died."""
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)
