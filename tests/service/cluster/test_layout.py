"""How many workers, and what each reserves."""

from __future__ import annotations

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from tests.support.waiting import wait_for
from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster.layout import WorkerLayout, resources_for, waits_for_room
from textinv_ray.util.errors import UserError


def size(resources: dict[str, float], concepts: int = 100, *overrides: str) -> WorkerLayout:
    return WorkerLayout.of(JobConfig.load("mini", overrides), resources, concepts)


def test_by_the_cluster() -> None:
    assert size({"CPU": 2}).workers == 2
    assert size({"CPU": 64, "GPU": 8}).workers == 8
    assert size({"CPU": 64, "GPU": 8}).gpus == 1
    assert size({"CPU": 4, "GPU": 8}, 100, "service.cpus_per_worker=2").workers == 2
    assert size({"CPU": 0.5}).workers == 1
    assert size({}).workers == 1


def test_by_the_configuration() -> None:
    assert size({"CPU": 2}, 100, "service.workers=5").workers == 5
    assert size({"CPU": 8, "GPU": 2}, 100, "service.gpus_per_worker=0.5").workers == 4
    assert size({"CPU": 8, "GPU": 2}, 100, "model.device=cpu") == size({"CPU": 8})


def test_no_more_than_concepts() -> None:
    assert size({"CPU": 64}, 3).workers == 3


def test_preparation_always_finds_room() -> None:
    """Workers on all CPUs, and the tasks that feed them must still be placed."""
    for cpus in (1, 2, 8):
        found = size({"CPU": cpus})
        assert found.workers * found.cpus + found.prepare_cpus <= cpus + 1e-9


def test_cuda_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"model\.device is cuda, but the cluster has no GPU"):
        size({"CPU": 2}, 100, "model.device=cuda")


def test_what_a_user_is_told() -> None:
    assert str(size({"CPU": 1})) == "1, on the CPU"
    assert str(size({"CPU": 2})) == "2, on the CPU each"
    assert str(size({"CPU": 8, "GPU": 2}, 1)) == "1, 1 GPU"
    assert str(size({"CPU": 8, "GPU": 2}, 100, "service.gpus_per_worker=0.5")) == "4, 0.5 GPU each"


def test_what_a_cluster_lacks() -> None:
    layout = WorkerLayout(workers=2, cpus=3.9, gpus=1.0, prepare_cpus=0.1)
    assert layout.missing({"CPU": 8.0}) == "waiting for 1 GPU: the cluster has 0"
    assert layout.missing({"CPU": 2.0, "GPU": 1.0}) == "waiting for 4 CPUs: the cluster has 2"
    assert layout.missing({"CPU": 4.0, "GPU": 1.0}) == ""


def test_what_others_use() -> None:
    layout = WorkerLayout(workers=2, cpus=3.9, gpus=1.0, prepare_cpus=0.1)
    there = {"CPU": 8.0, "GPU": 4.0}
    assert layout.occupied(there, {"CPU": 8.0}) == "waiting for 1 GPU: 0 of the cluster's 4 are free"
    assert (
        layout.occupied(there, {"CPU": 2.0, "GPU": 1.0})
        == "waiting for 4 CPUs: 2 of the cluster's 8 are free"
    )
    assert layout.occupied(there, there) == ""


def test_a_trainer_waits_for_room(local_ray: None) -> None:
    """As long as others reserve what it asks for; those that ask for something else don't count."""
    layout = WorkerLayout(workers=1, cpus=0.9, gpus=0.0, prepare_cpus=0.1)
    every = ray.cluster_resources()["CPU"]
    other = placement_group([{"CPU": every}])
    ray.get(other.ready(), timeout=60)
    assert not waits_for_room(layout)
    ours = placement_group([layout.resources])
    wait_for(lambda: waits_for_room(layout))
    wait_for(lambda: ray.available_resources().get("CPU", 0) == 0)
    line = layout.occupied(ray.cluster_resources(), ray.available_resources())
    assert line == f"waiting for 1 CPU: 0 of the cluster's {every:g} are free"
    remove_placement_group(other)
    ray.get(ours.ready(), timeout=60)
    assert not waits_for_room(layout)
    remove_placement_group(ours)


NODES = [
    {"Alive": True, "Labels": {"zone": "a"}, "Resources": {"CPU": 4.0, "GPU": 1.0}},
    {"Alive": True, "Labels": {"zone": "b"}, "Resources": {"CPU": 8.0}},
    {"Alive": True, "Labels": {}, "Resources": {"CPU": 2.0, "GPU": 2.0}},
    {"Alive": False, "Labels": {"zone": "a"}, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.mark.parametrize(
    ("selectors", "resources", "nodes"),
    [
        ([], {"CPU": 14.0, "GPU": 3.0}, ""),
        (["label_selector={zone: a}"], {"CPU": 4.0, "GPU": 1.0}, "zone=a"),
        (
            ["label_selector={zone: a}", "fallback_label_selectors=[{zone: b}]"],
            {"CPU": 12.0, "GPU": 1.0},
            "zone=a, or else zone=b",
        ),
        (
            ["label_selector={zone: c}", "fallback_label_selectors=[{}]"],
            {"CPU": 14.0, "GPU": 3.0},
            "zone=c, or else any node",
        ),
        (["label_selector={zone: c}"], {}, "zone=c"),
    ],
)
def test_only_nodes_that_are_selected_count(
    selectors: list[str], resources: dict[str, float], nodes: str
) -> None:
    config = JobConfig.load("mini", [f"service.{selector}" for selector in selectors])
    assert resources_for(config, NODES) == resources
    layout = WorkerLayout.of(config, resources_for(config, NODES), 100)
    assert layout.nodes == nodes
    assert str(layout).endswith(f", on {nodes}" if nodes else "each")
    assert layout.missing(resources) == "" if resources else "waiting for 1 CPU on zone=c: the cluster has 0"
