"""What this package takes from Ray beyond its promises: there, doing what is needed, and missed without harm."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo
from ray.data import DataContext
from ray.util.placement_group import PlacementGroup, placement_group

from tests.support.commands import REPOSITORY
from tests.support.waiting import wait_for
from textinv_ray.service.cluster import ray_internals
from textinv_ray.util import submitted_job

needs_ray = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> DataContext:
    """Ray Data's, whose callbacks are taken out again after the test."""
    context = DataContext.get_current()
    monkeypatch.setattr(context, "custom_execution_callback_classes", [])
    monkeypatch.setattr(context, "enable_progress_bars", False)
    return context


def launch(kind: str, count: int, details: str | None = None) -> LaunchRequest:
    """Machines that the autoscaler asked its cloud for; with `details` in vain."""
    state = LaunchRequest.Status.FAILED if details else LaunchRequest.Status.PENDING
    return LaunchRequest("", kind, count, state, 0, details=details)


class Reserver:
    """As a controller of Ray Train does, which may die."""

    def reserve(self) -> PlacementGroup:
        group = placement_group([{"CPU": 0.5}])
        ray.get(group.ready(), timeout=60)
        return group


@pytest.mark.slow
@needs_ray
def test_only_what_the_dead_reserved_is_freed() -> None:
    """Ray itself keeps it for as long as the job lasts."""
    make: Any = ray.remote(num_cpus=0)(Reserver)
    dead, living = make.remote(), make.remote()
    lost, kept = ray.get([dead.reserve.remote(), living.reserve.remote()], timeout=60)

    def state(group: PlacementGroup) -> str:
        return str(ray.util.placement_group_table(group)["state"])

    def lost_is_freed() -> bool:
        ray_internals.free_reservations_of_the_dead()
        return state(lost) == "REMOVED"

    assert not lost_is_freed()
    assert state(lost) == "CREATED"
    ray.kill(dead)
    wait_for(lost_is_freed)  # it takes Ray a moment to know that the actor is dead
    assert state(kept) == "CREATED"
    ray.util.remove_placement_group(kept)


_DRAINS_ITSELF = """
import ray, time
from tests.support.waiting import wait_for
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from textinv_ray.service.cluster.ray_internals import draining_nodes

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
class Busy:
    def ready(self):
        return True

busy = ray.remote(num_cpus=1)(Busy).remote()  # an idle node would go at once
assert ray.get(busy.ready.remote())
assert not draining_nodes(), "before"
context = ray.get_runtime_context()
reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
deadline_ms = int(1000 * (time.time() + 120))
client = GcsClient(address=context.gcs_address)
assert client.drain_node(context.get_node_id(), reason, "spot", deadline_ms)[0]
wait_for(lambda: list(draining_nodes()) == [context.get_node_id()], 30)
print("passed")
"""


@pytest.mark.slow
def test_a_node_that_was_told_to_go() -> None:
    """On a Ray of its own, which ends with its only node."""
    done = subprocess.run([sys.executable, "-c", _DRAINS_ITSELF], capture_output=True, text=True, timeout=120)
    assert "passed" in done.stdout, done.stderr


@needs_ray
def test_no_machine_comes_to_a_local_ray() -> None:
    assert ray_internals.machines_to_come() == ""


@needs_ray
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (ClusterStatus(), ""),
        (ClusterStatus(pending_nodes=[NodeInfo("g5.xlarge", "gpu", "i-1", "")] * 2), "starting 2 x gpu"),
        (
            ClusterStatus(
                pending_nodes=[NodeInfo("g5.xlarge", "gpu", "i-1", "")],
                pending_launches=[launch("gpu", 3), launch("spot", 1)],
                failed_launches=[launch("big", 1, "no capacity\nin this zone"), launch("gpu", 1, "once")],
            ),
            "starting 4 x gpu, starting 1 x spot, big can't be started (no capacity\\nin this zone)",
        ),
    ],
)
def test_machines_that_the_autoscaler_starts(
    status: ClusterStatus, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda _address: status)
    assert ray_internals.machines_to_come() == said


def test_the_ray_that_was_started_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file that Ray's own `ray start` writes."""
    from ray._private.utils import write_ray_address

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    assert ray_internals.last_started_address() is None
    write_ray_address("127.0.0.1:6379")
    assert ray_internals.last_started_address() == "127.0.0.1:6379"


@needs_ray
@pytest.mark.slow
def test_trainers_start_no_more_than_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch takes two seconds of each controller and worker, and each of the actors left out as much."""
    from ray._private.state import actors
    from ray.train import RunConfig, ScalingConfig

    def train_loop() -> None:
        (tmp_path / "torch").write_text(str("torch" in sys.modules))

    def started() -> Counter[str]:
        return Counter(actor["ActorClassName"] for actor in actors().values())

    monkeypatch.setenv(ray_internals.PREEMPTION_WATCHER, "0")
    before = started()
    ray_internals.trainer_class()(
        train_loop,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path)),
    ).fit()
    assert (tmp_path / "torch").read_text() == "False"
    made = started() - before
    made.pop("_AutoscalingCoordinatorActor", None)  # one for all trainers, and for Ray Data
    assert made == Counter(["TrainController", "SynchronizationActor", "RayTrainWorker"])


@pytest.mark.slow
@needs_ray
def test_a_repartition_beside_workers_that_take_the_cpus(context: DataContext) -> None:
    rows = ray.data.from_arrow(pa.table({"number": list(range(20))}))
    rows = rows.repartition(target_num_rows_per_block=5)
    ray_internals.reserve_for_repartition(rows, 0.1)
    group = placement_group([{"CPU": 1.5}])
    ray.get(group.ready(), timeout=60)
    try:
        assert sum(row["number"] for row in rows.iter_rows()) == sum(range(20))
    finally:
        ray.util.remove_placement_group(group)


@needs_ray
@pytest.mark.slow
def test_the_scheduler_rests_while_rows_wait(context: DataContext) -> None:
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    steps: list[float] = []

    class Count(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            steps.append(time.monotonic())

    def is_resting() -> bool:
        return len(steps) > 5 and steps[-1] - steps[-6] > 5 * 0.2

    context.custom_execution_callback_classes = [Count]
    ray_internals.rest_while_rows_wait(context, 0.2)
    ray_internals.rest_while_rows_wait(context, 0.2)
    assert len(context.custom_execution_callback_classes) == 2, "once, and beside others"
    taken = iter(ray.data.range(100, override_num_blocks=100).iter_rows())
    found = [next(taken)["id"]]
    wait_for(is_resting)
    found += [row["id"] for row in taken]
    assert sorted(found) == list(range(100))


def test_names_of_variables() -> None:
    from ray._private import ray_constants
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.train.v2._internal import constants as train

    assert ray_internals.PREEMPTION_WATCHER == train.ENABLE_PREEMPTION_WATCHER_ENV_VAR
    assert ray_internals.WORKER_HEALTH_CHECK_TIMEOUT_S == train.WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR
    assert ray_internals.WORKER_GROUP_START_TIMEOUT_S == train.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
    assert submitted_job.JOB_CONFIG_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
    assert submitted_job.UPLOADS_FOLDER == ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME


def test_a_trainer_that_found_no_room() -> None:
    """`test_fleet.py` sees one. Any other error isn't this one."""
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    assert ray_internals.found_no_room(ControllerError(WorkerGroupStartupTimeoutError(1)))
    assert not ray_internals.found_no_room(ControllerError(RuntimeError("x")))
    assert not ray_internals.found_no_room(RuntimeError("x"))


Warned = Callable[[], list[str]]


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[Warned]:
    """The warnings about a Ray that has changed, so far."""
    with caplog.at_level(logging.WARNING, ray_internals.__name__):
        yield lambda: [
            record.getMessage() for record in caplog.records if "has changed" in record.getMessage()
        ]


class TestWithoutThem:
    """Ray has changed: one warning however often it is asked, and no error."""

    def test_the_global_state(self, monkeypatch: pytest.MonkeyPatch, warned: Warned) -> None:
        monkeypatch.delattr("ray._private.state.state")
        for _ in range(2):
            ray_internals.free_reservations_of_the_dead()
            assert not ray_internals.draining_nodes()
        reservations, draining = warned()
        assert "stays reserved" in reservations
        assert "about to be taken away" in draining

    def test_the_file_of_ray_start(self, monkeypatch: pytest.MonkeyPatch, warned: Warned) -> None:
        monkeypatch.delattr("ray._private.services.find_bootstrap_address")
        assert [ray_internals.last_started_address() for _ in range(2)] == [None, None]
        (message,) = warned()
        assert "RAY_ADDRESS can name it" in message

    def test_the_error_of_no_room(self, monkeypatch: pytest.MonkeyPatch, warned: Warned) -> None:
        monkeypatch.delattr("ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError")
        assert [ray_internals.found_no_room(RuntimeError("x")) for _ in range(2)] == [False, False]
        (message,) = warned()
        assert "fallbacks of a label selector" in message

    @needs_ray
    def test_the_autoscaler(self, monkeypatch: pytest.MonkeyPatch, warned: Warned) -> None:
        monkeypatch.delattr("ray.autoscaler.v2.sdk.get_cluster_status")
        assert [ray_internals.machines_to_come() for _ in range(2)] == ["", ""]
        (message,) = warned()
        assert "the autoscaler starts" in message

    def test_what_a_trainer_starts(self, monkeypatch: pytest.MonkeyPatch, warned: Warned) -> None:
        from ray.train.torch import TorchTrainer

        monkeypatch.delattr("ray.train.v2._internal.callbacks.DatasetsCallback")
        assert [ray_internals.trainer_class() for _ in range(2)] == [TorchTrainer, TorchTrainer]
        (message,) = warned()
        assert "start more slowly" in message

    @needs_ray
    def test_the_logical_plan(self, warned: Warned, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = ray.data.from_arrow(pa.table({"number": [1]})).repartition(target_num_rows_per_block=5)
        monkeypatch.delattr(rows, "_logical_plan")
        for _ in range(2):
            ray_internals.reserve_for_repartition(rows, 0.1)
        (message,) = warned()
        assert "a whole CPU" in message

    def test_the_callbacks(
        self, context: DataContext, monkeypatch: pytest.MonkeyPatch, warned: Warned
    ) -> None:
        monkeypatch.delattr("ray.data._internal.execution.execution_callback.ExecutionCallback")
        for _ in range(2):
            ray_internals.rest_while_rows_wait(context, 0.3)
        assert context.custom_execution_callback_classes == []
        (message,) = warned()
        assert "0.4 of a CPU" in message

    def test_the_field_for_callbacks(
        self, context: DataContext, monkeypatch: pytest.MonkeyPatch, warned: Warned
    ) -> None:
        monkeypatch.delattr(context, "custom_execution_callback_classes")
        for _ in range(2):
            ray_internals.rest_while_rows_wait(context, 0.4)
        (message,) = warned()
        assert "0.4 of a CPU" in message

    def test_what_callbacks_are_asked(self, context: DataContext, warned: Warned) -> None:
        ray_internals.rest_while_rows_wait(context, 0.5)
        (callback,) = context.custom_execution_callback_classes
        for _ in range(2):
            callback().on_execution_step(executor=object())
        (message,) = warned()
        assert "0.4 of a CPU" in message


def private_parts(source: str) -> list[str]:
    """Modules and attributes of Ray that begin with an underscore, as a program imports or names them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        found += [name for name in names if name.startswith("ray.") and "._" in name]
    return found


def test_private_parts_are_seen() -> None:
    """By the function that the next test relies on."""
    assert private_parts("import ray._private.services") == ["ray._private.services"]
    assert private_parts("from ray.data._internal.plan import Plan") == ["ray.data._internal.plan.Plan"]
    assert private_parts("def f():\n  import ray\n  ray._private.worker") == [
        "ray._private.worker",
        "ray._private",
    ]
    assert private_parts("from ray.data import Dataset\nray.init()\nself._rays") == []


@pytest.mark.parametrize("folder", ["textinv_ray", "jobs", "benchmarks", "training"])
def test_nothing_else_is_private(folder: str) -> None:
    allowed = REPOSITORY / "textinv_ray" / "service" / "cluster" / "ray_internals.py"
    assert private_parts(allowed.read_text())
    found = {
        str(path.relative_to(REPOSITORY)): parts
        for path in (REPOSITORY / folder).rglob("*.py")
        if path != allowed and (parts := private_parts(path.read_text()))
    }
    assert found == {}
