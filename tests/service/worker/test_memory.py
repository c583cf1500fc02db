"""A worker whose device is full, and one that compiles: smaller packs learn the same words."""

from __future__ import annotations

import copy
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import tiny
from tests.support.bench import Bench
from tests.support.waiting import wait_for
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.scheduling.protocol import Orders
from textinv_ray.service.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("local_ray")


def with_own_unet(backbone: Backbone) -> Backbone:
    """The backbone with a copy of its UNet, which the test may change."""
    assert isinstance(backbone, StableDiffusion)
    return dataclasses.replace(backbone, unet=copy.deepcopy(backbone.unet))


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    """Lets passes of `at` or more concepts fail as a full device does. Returns the sizes of those that ran."""
    real, sizes = Pack.losses_and_gradient, []

    def allocate(pack: Pack) -> Any:
        if len(pack.tasks) >= at and pack.tasks[0].step >= 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(pack.tasks))
        return real(pack)

    monkeypatch.setattr(Pack, "losses_and_gradient", allocate)
    return sizes


def test_out_of_memory_makes_the_pack_smaller(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    concepts = [tiny.concept(index, steps=8) for index in range(6)]
    alone = [bench.alone(concept) for concept in concepts]
    bench.config = bench.config.model_copy(update={"pack": bench.config.pack.model_copy(update={"size": 4})})
    sizes = run_out_of_memory(monkeypatch, at=3)
    status = bench.learn(concepts)
    assert (status.done, status.failed) == (6, 0)
    assert status.steps_computed == 6 * 8, "nothing was learned twice"
    full = sizes.index(4)
    assert max(sizes[full + 4 :]) == 2
    for concept, vectors in zip(concepts, alone, strict=True):
        np.testing.assert_allclose(bench.vectors(concept.concept_id), vectors, atol=1e-6)


def test_what_is_given_back_stays_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever heartbeat is under way: by one that came later the scheduler would take it for this worker's again."""
    bench.config = bench.config.override(["pack.size=2", "service.lease_timeout_s=60"])
    scheduler = bench.scheduler([tiny.concept(index, steps=8) for index in range(2)])
    under_way, given_back = threading.Event(), threading.Event()
    real_beat, real_give_back, real_step = scheduler.beat, scheduler.give_back, Pack.losses_and_gradient

    def beat(worker: str, steps: Mapping[str, int], computed: int, node: str = "") -> Orders:
        if len(steps) == 2 and not under_way.is_set():
            under_way.set()
            given_back.wait(2)  # in vain where that waits for this heartbeat
        return real_beat(worker, steps, computed, node)

    def give_back(worker: str, concept_id: str) -> None:
        real_give_back(worker, concept_id)
        given_back.set()

    def allocate(pack: Pack) -> Any:
        if len(pack.tasks) == 2 and not given_back.is_set():
            assert under_way.wait(20)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real_step(pack)

    monkeypatch.setattr(scheduler, "beat", beat)
    monkeypatch.setattr(scheduler, "give_back", give_back)
    monkeypatch.setattr(Pack, "losses_and_gradient", allocate)
    thread = threading.Thread(target=bench.worker(scheduler).run)
    thread.start()
    try:
        wait_for(lambda: scheduler.status(0).done == 2, 20, "nobody learns what was given back")
    finally:
        scheduler.stop()
        thread.join()
    assert given_back.is_set()


def test_no_memory_for_one_of_those_that_begin_together(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, and the others, which began before and after it, have their slots."""
    bench.config = bench.config.override(["pack.size=4"])
    real, begun = Engine.task, []

    def task(engine: Engine, concept: Concept) -> ConceptTask:
        begun.append(concept.concept_id)
        if begun == [f"concept-{index}" for index in range(3)]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(engine, concept)

    monkeypatch.setattr(Engine, "task", task)
    status = bench.learn([tiny.concept(index, steps=8) for index in range(4)])
    assert begun == ["concept-0", "concept-1", "concept-2", "concept-3", "concept-2"]
    assert (status.done, status.failed) == (4, 0)
    assert status.steps_redone == 0


@pytest.fixture
def compiling(bench: Bench) -> Iterator[Bench]:
    """Packs of two through a compiler that is right on every CPU, which torch's default isn't for this model."""
    bench.compiler = "aot_eager"
    bench.backbone = copy.copy(bench.backbone)
    bench.config = bench.config.override(["pack.size=2", "pack.compile=true"])
    yield bench
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiler_changes_no_word(compiling: Bench) -> None:
    concepts = [tiny.concept(index, steps=4) for index in range(3)]
    alone = [compiling.alone(concept) for concept in concepts]
    assert compiling.learn(concepts).done == 3
    assert compiling.backbone.compiled is not None
    for concept, vectors in zip(concepts, alone, strict=True):
        np.testing.assert_allclose(compiling.vectors(concept.concept_id), vectors, atol=1e-4)


STOPPING = {
    "dvar": {"rule": "dvar", "min_steps": 3, "dvar": {"every": 2, "window": 3, "threshold": 0.2}},
    "clip": {"rule": "clip", "min_steps": 3, "clip": {"every": 3, "patience": 1, "num_images": 2}},
}


@pytest.mark.slow  # compiles, twice
@pytest.mark.parametrize("rule", ["dvar", "clip"])
def test_packed_equals_alone_with_everything_switched_on(compiling: Bench, rule: str) -> None:
    """A compiled step with free slots, checkpointed activations, words that end early and others in their slots."""
    concepts = [tiny.concept(index, steps=20, batch_size=2 - index % 2) for index in range(4)]
    settings = compiling.config.override(["training.batch_size=2"]).to_dict() | {"stopping": STOPPING[rule]}
    compiling.config = JobConfig.from_dict(settings)
    alone = [compiling.learned_alone(concept) for concept in concepts]
    compiling.backbone = with_own_unet(compiling.backbone)
    compiling.backbone.checkpoint_activations()
    assert compiling.learn(concepts).done == 4
    assert compiling.backbone.compiled is not None
    for concept, task in zip(concepts, alone, strict=True):
        result = compiling.store.result(concept.concept_id)
        assert result is not None
        assert (result.steps, result.best_step) == (task.step, task.best_step)
        assert result.stopped == (task.stopped or "steps")
        np.testing.assert_allclose(compiling.vectors(concept.concept_id), task.vectors, atol=1e-4)
    assert rule in {task.stopped for task in alone}
    assert len({task.step for task in alone}) > 1, "slots got free at different times"


@pytest.mark.slow
def test_out_of_memory_compiles_for_the_smaller_pack(
    compiling: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out_of_memory(monkeypatch, at=2)
    assert compiling.learn([tiny.concept(index, steps=6) for index in range(2)]).done == 2
    assert compiling.backbone.compiled is not None
    assert compiling.backbone.compiled.samples == compiling.config.training.batch_size


def test_out_of_memory_alone_checkpoints_activations(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    concepts = [tiny.concept(index, steps=8) for index in range(3)]
    alone = [bench.alone(concept) for concept in concepts]
    bench.backbone = with_own_unet(bench.backbone)
    bench.config = bench.config.override(["pack.size=2"])
    real, tensors, sizes = Pack.losses_and_gradient, [], []

    def allocate(pack: Pack) -> Any:
        allocated = torch.zeros(1)
        if not pack.backbone.checkpoints_activations and pack.tasks[0].step >= 3:
            tensors.append(weakref.ref(allocated))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(pack.tasks))
        return real(pack)

    def checkpoint_activations(backbone: Backbone) -> None:
        assert all(reference() is None for reference in tensors), "what the failed step allocated is freed"
        checkpoint(backbone)

    checkpoint = Backbone.checkpoint_activations
    monkeypatch.setattr(Backbone, "checkpoint_activations", checkpoint_activations)
    monkeypatch.setattr(Pack, "losses_and_gradient", allocate)
    status = bench.learn(concepts)
    assert (status.done, status.failed) == (3, 0)
    assert status.steps_computed == 3 * 8, "nothing was learned twice"
    assert len(tensors) == 2
    assert sizes[:4] == [1, 2, 2, 2], "after the third the pack is as large again as it was"
    for concept, vectors in zip(concepts, alone, strict=True):
        np.testing.assert_allclose(bench.vectors(concept.concept_id), vectors, atol=1e-6)


def test_out_of_memory_alone_fails_the_concept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.backbone = with_own_unet(bench.backbone)
    run_out_of_memory(monkeypatch, at=1)
    status = bench.learn([tiny.concept(0, steps=8), tiny.concept(1, steps=2)])
    assert (status.done, status.failed) == (1, 1)
    (failure,) = bench.store.failures()
    assert "out of memory, though it was alone" in failure.error
