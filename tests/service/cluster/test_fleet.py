"""How many workers, and what each reserves."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group

from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster.layout import WorkerLayout
from textinv_ray.service.cluster.ray_internals import free_what_the_dead_reserved
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


class Reserver:
    """As a controller of Ray Train does, which may die."""

    def reserve(self) -> PlacementGroup:
        group = placement_group([{"CPU": 0.5}])
        ray.get(group.ready(), timeout=60)
        return group


def test_only_what_the_dead_reserved_is_freed(local_ray: None) -> None:
    """Ray itself keeps it for as long as the job lasts."""
    make: Any = ray.remote(num_cpus=0)(Reserver)
    dead, living = make.remote(), make.remote()
    lost, kept = ray.get([dead.reserve.remote(), living.reserve.remote()], timeout=60)

    def state(group: PlacementGroup) -> str:
        return str(ray.util.placement_group_table(group)["state"])

    free_what_the_dead_reserved()
    assert state(lost) == "CREATED"
    ray.kill(dead)
    while state(lost) != "REMOVED":  # it takes Ray a moment to know that the actor is dead
        free_what_the_dead_reserved()
    assert state(kept) == "CREATED"
    ray.util.remove_placement_group(kept)
