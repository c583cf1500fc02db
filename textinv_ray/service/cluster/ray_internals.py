"""Everything this package takes from Ray that Ray doesn't promise to keep, and nothing else.

Read from Ray 2.60.0. Each function says which part of Ray it touches, why no public API serves, and what is lost
without it. When Ray has changed and the part is gone, a function logs one warning and does without: jobs go on, with
less comfort. `tests/service/cluster/test_ray_internals.py` runs each of them on the installed Ray, so a new version
shows there first, and finds any import of a private module of Ray elsewhere.

The names by which a submitted job is recognised stand in `util/submitted_job.py`, which may not import this room.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import ray

from textinv_ray.util.text import one_line

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

logger = logging.getLogger(__name__)

# Raised by a private part that is gone, or is another now.
_CHANGED = (ImportError, AttributeError, TypeError)

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Environment variable of a Train controller's process; "0" switches the watcher off. `RunConfig` has no field for
it. Not heeded, the watcher restarts a trainer's whole group when one of its nodes is about to be taken away."""

WORKER_HEALTH_CHECK_TIMEOUT_S = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
"""Environment variable of a Train controller's process: seconds after which a silent worker counts as dead.
`RunConfig` has no field for it. Not heeded, a hung worker keeps its GPU for Train's own ten minutes."""

WORKER_GROUP_START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Environment variable of a Train controller's process: seconds that it waits for room for its workers, 60 by default.
`ScalingConfig` has no field for it. Not heeded, the next label selector is tried after 60 seconds."""


def found_no_room(error: BaseException) -> bool:
    """Whether a trainer ended because there was no room for its workers in time.

    Private: the error that Train's controller fails with, which stands in its public `ControllerError`. Without it:
    such a trainer counts as one that failed, and `service.fallback_label_selectors` are not tried.
    """
    from ray.train import ControllerError

    try:
        from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    except _CHANGED as changed:
        _warn_once("the fallbacks of a label selector are not tried", changed)
        return False
    return isinstance(error, ControllerError) and isinstance(
        error.controller_failure, WorkerGroupStartupTimeoutError
    )


def free_reservations_of_the_dead() -> None:
    """Removes placement groups of this job whose creator, a controller of Ray Train, has died.

    Ray keeps them until the job ends, and new trainers would wait for their CPUs and GPUs forever. Train's own
    cleaner, which `trainer_class` leaves out, asks the dashboard, which a local Ray doesn't have.

    Private: the global state's accessor and the protobuf of its entries. `ray.util.placement_group_table` and
    `ray.util.state.list_placement_groups` leave out who created a group. Without it: after a controller's death,
    its trainer never starts again on a Ray without a dashboard.
    """
    try:
        from ray._private.state import state
        from ray.core.generated.gcs_pb2 import PlacementGroupTableData
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        table = state._connect_and_get_accessor().get_placement_group_table()
        groups = [PlacementGroupTableData.FromString(entry) for entry in table]
        job = ray.get_runtime_context().get_job_id()
        orphans = [
            PlacementGroup(ray.PlacementGroupID(group.placement_group_id))
            for group in groups
            if group.creator_job_id.hex() == job
            and group.creator_actor_dead
            and group.state != PlacementGroupTableData.REMOVED
        ]
    except _CHANGED as error:
        _warn_once("what dead trainers reserved stays reserved until the job ends", error)
        return
    for orphan in orphans:
        logger.warning("freeing what a trainer reserved that died")
        remove_placement_group(orphan)


def draining_nodes() -> Collection[str]:
    """Ids of nodes that were told to go: preempted, scaled down, or drained by hand.

    Private: the global state. `ray.nodes()` and `ray.util.state.list_nodes` show such a node as alive until it is
    gone. Without it: concepts go on being leased to nodes that are about to go, and resume from an older checkpoint.
    """
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except _CHANGED as error:
        _warn_once("workers aren't told when their node is about to be taken away", error)
        return set()


def machines_to_come() -> str:
    """What the cluster's autoscaler does, such as "starting 2 x gpu"; empty when it starts nothing, or there is none.

    Ray's developer API: the SDK of its autoscaler. `ray status` prints the same, for people. Without it: a job that
    waits for a machine doesn't say whether one is coming.
    """
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        starting = Counter(node.ray_node_type_name for node in status.pending_nodes)
        for launch in status.pending_launches:
            starting[launch.ray_node_type_name] += launch.count
        failed = {launch.ray_node_type_name: launch.details for launch in status.failed_launches}
    except _CHANGED as error:
        _warn_once("whether the autoscaler starts a machine isn't known", error)
        return ""
    except Exception:  # of a head that is busy or gone: the job goes on waiting
        logger.info("the autoscaler can't be asked", exc_info=True)
        return ""
    parts = [f"starting {count} x {kind}" for kind, count in starting.items()]
    parts += [
        f"{kind} can't be started" + (f" ({one_line(details, 200)})" if details else "")
        for kind, details in failed.items()
        if kind not in starting
    ]
    return ", ".join(parts)


def token_is_known() -> bool:
    """Whether Ray finds an authentication token: in the environment or the home folder.

    Private: the loader of tokens; there is no public way to ask. Without it: a local Ray leaves a token in the home
    folder, which later clusters ask for.
    """
    try:
        from ray._raylet import AuthenticationTokenLoader

        return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except _CHANGED as error:
        _warn_once("whether Ray has an authentication token isn't known", error)
        return True


def use_token_if_known() -> None:
    """Has this process send its authentication token to the cluster that it joins, if it has one.

    With an explicit address, Ray itself does so only where RAY_AUTH_MODE=token is set, although `ray start --head`
    asks for a token as soon as the home folder has one.

    Private: what `ray.init(address="auto")` calls. Without it: RAY_AUTH_MODE=token must be set by hand.
    """
    try:
        from ray._private.authentication.authentication_token_setup import (
            maybe_enable_token_auth_if_token_available,
        )

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except _CHANGED as error:
        _warn_once(
            "a cluster that asks for an authentication token is joined with RAY_AUTH_MODE=token", error
        )


def last_started_address() -> str | None:
    """The address of the Ray that `ray start` started or joined on this machine last; it may be gone by now.

    Private: the function that reads it from Ray's temporary folder. `ray.init(address="auto")` would also join the
    local Ray of another job, which ends with that job. Without it: such a Ray is joined by RAY_ADDRESS only.
    """
    try:
        from ray._private.services import find_bootstrap_address

        return find_bootstrap_address(None) or None
    except _CHANGED as error:
        _warn_once("a Ray that `ray start` started isn't found; RAY_ADDRESS can name it", error)
        return None


def trainer_class() -> type[DataParallelTrainer]:
    """Ray Train's trainer for workers that don't talk to each other and read no shards of a dataset: it starts sooner.

    No torch.distributed is set up, so that neither the fleet nor a controller imports torch. Two actors of each trainer
    are left out: that which splits datasets, and that which frees the placement group of a dead controller
    (`free_reservations_of_the_dead` does so, without a dashboard).

    The trainer is Ray's developer API, the method that chooses the actors is private. Without them: each start of a
    trainer takes some seconds of a CPU more, and its workers form a process group that nobody uses.
    """
    try:
        from ray.train.v2._internal.callbacks import DatasetsCallback
        from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    except _CHANGED as error:
        _warn_once("trainers start more slowly", error)
        from ray.train.torch import TorchTrainer

        return TorchTrainer

    class LeanTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            unused = DatasetsCallback, PlacementGroupCleanerCallback
            return [given for given in super()._create_default_callbacks() if not isinstance(given, unused)]

    return LeanTrainer


def reserve_for_repartition(rows: Dataset, num_cpus: float) -> None:
    """Sets the CPUs that a task of the last step of `rows`, a `repartition`, reserves: one by default.

    Private: the logical plan and its operators' arguments. `Dataset.repartition` has no argument for it, unlike all
    other steps. Without it: the tasks wait for a whole CPU, forever where workers hold all of them.
    """
    try:
        rows._logical_plan.dag.ray_remote_args["num_cpus"] = num_cpus
    except _CHANGED as error:
        _warn_once("preparing concepts needs a whole CPU that no worker reserves", error)


def rest_while_rows_wait(context: DataContext, rest_s: float) -> None:
    """Lets executions by `context` rest `rest_s` seconds between two steps while rows wait for their consumer.

    Held back by a consumer that takes nothing, Ray Data's scheduler checks hundreds of times a second whether that
    has changed: 0.4 of a CPU, for as long as a job runs. While rows lie ready, a rest costs nothing.

    Private: the callbacks of an execution, the context's undocumented field for them, and what they are asked.
    Without it: that share of a CPU is lost.
    """
    callback = _idle_throttle(rest_s)
    if callback is None:
        return
    try:
        given = context.custom_execution_callback_classes
    except _CHANGED as error:
        _warn_once(_BUSY_SCHEDULER, error)
        return
    if callback not in given:
        context.custom_execution_callback_classes = [*given, callback]


_BUSY_SCHEDULER = "Ray Data's scheduler takes 0.4 of a CPU while it has nothing to do"


@functools.cache
def _idle_throttle(rest_s: float) -> type | None:
    """The callback's class; None where Ray knows no such callbacks."""
    try:
        from ray.data._internal.execution.execution_callback import ExecutionCallback
    except _CHANGED as error:
        _warn_once(_BUSY_SCHEDULER, error)
        return None

    class IdleThrottle(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            """`executor`: the StreamingExecutor."""
            try:
                is_wanted = executor._consumer_idling()  # the consumer waits for a row
            except _CHANGED as error:
                _warn_once(_BUSY_SCHEDULER, error)
                return
            if not is_wanted:
                time.sleep(rest_s)

    return IdleThrottle


def _warn_once(consequence: str, error: Exception) -> None:
    _warn(consequence, str(error))


@functools.cache
def _warn(consequence: str, why: str) -> None:
    logger.warning("Ray %s has changed (%s): %s", ray.__version__, why, consequence)
