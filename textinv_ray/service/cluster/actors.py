"""Options of Ray actors."""

from __future__ import annotations

from typing import TypedDict

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class ActorOptions(TypedDict):
    """Of `ActorClass.options`."""

    num_cpus: float
    scheduling_strategy: NodeAffinitySchedulingStrategy
    max_restarts: int
    max_task_retries: int


def on_this_node() -> ActorOptions:
    """Options of an actor that outlives other nodes: on the caller's node, started again when its process dies.

    Without an affinity, an actor that reserves no CPU may be placed on any other node and die with it.
    """
    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": strategy, "max_restarts": -1, "max_task_retries": -1}


def was_restarted() -> bool:
    """Whether this process is an actor's that Ray started again after its process had died."""
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)
