"""Private APIs of Ray: every use of one is here."""

from __future__ import annotations

import logging
from collections.abc import Collection

import ray

logger = logging.getLogger(__name__)


def free_what_the_dead_reserved() -> None:
    """Removes placement groups of this job whose creator, a controller of Ray Train, has died.

    Ray keeps them until the job ends, and new trainers would wait for their CPUs and GPUs forever. Train's own
    cleaner asks the dashboard who lives, and a local Ray has none.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        found = PlacementGroupTableData.FromString(entry)
        is_held = found.state != PlacementGroupTableData.REMOVED
        if found.creator_job_id.hex() == job and found.creator_actor_dead and is_held:
            logger.warning("freeing what a trainer reserved that died")
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))


def draining_nodes() -> Collection[str]:
    """Ids of nodes that were told to go: preempted, scaled down, or drained by hand."""
    from ray._private.state import state

    return set(state.get_draining_nodes())
