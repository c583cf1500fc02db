from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import tiny
from tests.support.learning import alone, assert_same, run
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import tuning
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import choose_pack_size, compile_step

CONFIG = JobConfig.from_dict({"training": {"max_grad_norm": 0.05, "lr_schedule": "cosine"}})
CONCEPT = tiny.concept(0, steps=4, batch_size=1)


@pytest.mark.parametrize(
    ("seconds_per_step", "max_size", "expected"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8, 8),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0}, 12, 8),
        ({1: 1.0, 2: 1.1, 4: 2.15}, 64, 2),
        ({1: 1.0, 2: 1.1, 4: math.inf}, 64, 2),
        ({1: 1.0}, 1, 1),
    ],
)
def test_pack_size_is_the_last_that_gained(
    backbone: StableDiffusion,
    monkeypatch: pytest.MonkeyPatch,
    seconds_per_step: dict[int, float],
    max_size: int,
    expected: int,
) -> None:
    def measured(_backbone: StableDiffusion, _task: ConceptTask, _config: JobConfig, size: int) -> float:
        if seconds_per_step[size] == math.inf:
            raise torch.OutOfMemoryError
        return 1 / seconds_per_step[size]

    monkeypatch.setattr(tuning, "steps_per_second", measured)
    config = JobConfig.from_dict({"pack": {"max_size": max_size}})
    task = ConceptTask(CONCEPT, backbone, config)
    assert choose_pack_size(backbone, task, config) == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError()])
def test_activations_are_checkpointed_when_not_even_one_concept_fits(
    checkpointing: StableDiffusion, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, sizes = Pack.losses_and_gradient, []

    def allocate(pack: Pack) -> Any:
        if len(pack.tasks) > (2 if checkpointing.checkpoints_activations else 0):
            raise error
        sizes.append(len(pack.tasks))
        return real(pack)

    monkeypatch.setattr(Pack, "losses_and_gradient", allocate)
    task = ConceptTask(CONCEPT, checkpointing, CONFIG)
    assert choose_pack_size(checkpointing, task, CONFIG) == max(sizes)
    assert checkpointing.checkpoints_activations


def test_only_a_lack_of_memory_is_no_error(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_pack: Pack) -> Any:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(Pack, "losses_and_gradient", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        choose_pack_size(backbone, ConceptTask(CONCEPT, backbone, CONFIG), CONFIG)
    assert not backbone.checkpoints_activations


def test_pack_size_by_configuration(backbone: StableDiffusion) -> None:
    config = JobConfig.from_dict({"pack": {"size": 7}})
    assert choose_pack_size(backbone, ConceptTask(CONCEPT, backbone, config), config) == 7


def test_the_trial_leaves_the_task_alone(backbone: StableDiffusion) -> None:
    config = JobConfig.from_dict({"pack": {"max_size": 2}})
    task = ConceptTask(CONCEPT, backbone, config)
    before = task.to_bytes()
    assert choose_pack_size(backbone, task, config) in (1, 2)
    assert task.to_bytes() == before
    run([task], backbone, 1, CONFIG)
    assert_same(task, alone(CONCEPT, backbone, CONFIG), 0)


def ignoring_gradients(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
    """A compiler like torch's on some CPUs: the output is right, but the gradient is zero."""

    def without(*inputs: Tensor) -> Any:
        nothing = sum(0 * part.sum() for part in inputs if part.requires_grad)
        return [out.detach() + nothing for out in module(*inputs)]

    return without


def broken(_module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
    """A compiler that isn't installed."""
    raise RuntimeError("no C++ compiler\nwhat to install")


@pytest.fixture
def compilable(backbone64: StableDiffusion) -> Iterator[StableDiffusion]:
    """The float64 backbone; the compilation is removed after the test."""
    yield backbone64
    backbone64.compiled = None
    torch.compiler.reset()


def test_nothing_is_compiled_where_it_does_not_fit(
    compilable: StableDiffusion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_pack: Pack) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Pack, "losses_and_gradient", full)
    assert not compile_step(compilable, ConceptTask(CONCEPT, compilable, CONFIG), 2, CONFIG)
    assert "CUDA out of memory" in caplog.text


@pytest.mark.slow
def test_what_needs_no_gradient_is_not_compiled(compilable: StableDiffusion) -> None:
    config = CONFIG.override(["stopping.rule=dvar", "stopping.dvar.every=1"])
    task, compiled = ConceptTask(CONCEPT, compilable, config), list[torch.fx.GraphModule]()

    def compiler(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(module)
        return module

    assert compile_step(compilable, task, 2, config, backend=compiler)
    before = len(compiled)
    assert before > 0
    run([task], compilable, 2, config)
    sample_images(compilable, {"<x>": task.vectors}, ["a <x>"], [0], config.review)
    assert len(compiled) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "warning"),
    [(ignoring_gradients, "the gradient is off by 100%"), (broken, "no C++ compiler")],
)
def test_a_compiler_that_is_wrong_or_missing_is_not_used(
    compilable: StableDiffusion, caplog: pytest.LogCaptureFixture, compiler: Any, warning: str
) -> None:
    task = ConceptTask(CONCEPT, compilable, CONFIG)
    before = task.to_bytes()
    assert not compile_step(compilable, task, 2, CONFIG, backend=compiler)
    assert compilable.compiled is None
    assert warning in caplog.text
    assert "what to install" not in caplog.text
    assert task.to_bytes() == before
    run([task], compilable, 1, CONFIG)
    assert_same(task, alone(CONCEPT, compilable, CONFIG), 0)
