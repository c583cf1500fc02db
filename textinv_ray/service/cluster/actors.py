"""Options of Ray actors."""

from __future__ import annotations

from typing import Any

import ray


def lasting_here() -> dict[str, Any]:
    """Options of an actor that must last: on the driver's node, and started again when its process dies.

    Without CPUs it might be placed on, and die with, any other node.
    """
    node = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": strategy, "max_restarts": -1, "max_task_retries": -1}
