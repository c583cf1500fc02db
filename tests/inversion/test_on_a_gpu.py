"""The packed step on a GPU: what must hold there as it does on the CPU. Skipped where there is none."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import tiny
from tests.support.learning import alone, assert_same, run
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack, is_out_of_memory
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import choose_pack_size, compile_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CONFIG = JobConfig.from_dict({"training": {"max_grad_norm": 0.05, "lr_schedule": "cosine"}})
CONCEPTS = [
    tiny.concept(0, steps=6, batch_size=3, num_vectors=2, regularization_weight=0.1),
    tiny.concept(1, steps=4, norm_control="rescale", captions=("a {}", "one {}", "{} here")),
    tiny.concept(2, steps=6, per_image_probability=0.5, vectors_added_at=(4,)),
    tiny.concept(3, steps=5, batch_size=1, optimizer="directional"),
]
TOLERANCE = {"float32": 1e-2, "float16": 0.03, "bfloat16": 0.2}
"""Of a gradient, relative to its norm: other kernels are chosen for other batches, and round differently.
Convolutions of float32 are in TensorFloat-32 by torch's default."""
FAMILIES = ("tiny_sd", "tiny_sd_v", "tiny_sdxl", "tiny_sd3", "tiny_flux", "tiny_sana", "tiny_flux2_klein")


@pytest.fixture
def exact(tiny_sd: Path) -> Backbone:
    """float64 on the GPU, so that equal mathematics gives equal numbers whatever is batched with what."""
    backbone = load_backbone(str(tiny_sd), device="cuda", dtype="float32")
    for model in backbone.models:
        model.to(torch.float64)
    return backbone


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    torch.compiler.reset()
    torch.cuda.empty_cache()


def filled(backbone: Backbone, config: JobConfig = CONFIG) -> Pack:
    """All concepts, at step 0."""
    pack = Pack(backbone, config, len(CONCEPTS))
    for concept in CONCEPTS:
        pack.add(started(concept, backbone, config))
    return pack


def started(concept: Concept, backbone: Backbone, config: JobConfig = CONFIG) -> ConceptTask:
    """At step 0. The initial loss scale may overflow; a run lowers it in its first steps."""
    task = ConceptTask(concept, backbone, config)
    task.tensors["loss_scale"].clamp_(max=256)
    return task


def gradients(pack: Pack) -> list[torch.Tensor]:
    """Of each concept's loss by its own vectors, on the CPU, without the loss scales."""
    _, gradient = pack.losses_and_gradient()
    parts = gradient.split([len(task.tensors["vectors"]) for task in pack.tasks])
    return [
        (part / task.tensors["loss_scale"]).double().cpu()
        for part, task in zip(parts, pack.tasks, strict=True)
    ]


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """`tolerance`: of the difference's norm, relative to what is expected."""
    assert expected.norm() > 0
    assert float((found - expected).norm() / expected.norm()) <= tolerance


def test_auto_takes_the_gpu(tiny_sd: Path, tiny_flux: Path) -> None:
    assert load_backbone(str(tiny_sd)).device.type == "cuda"
    assert load_backbone(str(tiny_sd)).dtype == torch.float16
    assert load_backbone(str(tiny_flux)).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [2, 4])
def test_packed_equals_alone(exact: Backbone, size: int) -> None:
    tasks = [ConceptTask(concept, exact, CONFIG) for concept in CONCEPTS]
    run(tasks, exact, size, CONFIG)
    for concept, task in zip(CONCEPTS, tasks, strict=True):
        assert_same(task, alone(concept, exact, CONFIG), 1e-7)


def test_the_gpu_learns_what_the_cpu_learns(exact: Backbone, backbone64: Backbone) -> None:
    """The draws are made on the host: they don't depend on the device."""
    for concept in CONCEPTS:
        on_gpu, on_cpu = alone(concept, exact, CONFIG), alone(concept, backbone64, CONFIG)
        torch.testing.assert_close(on_gpu.vectors, on_cpu.vectors, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_gradient_is_what_it_is_alone(request: pytest.FixtureRequest, family: str, dtype: str) -> None:
    folder = str(request.getfixturevalue(family))
    backbone = load_backbone(folder, device="cuda", dtype=dtype)
    packed = gradients(filled(backbone))
    for concept, gradient in zip(CONCEPTS, packed, strict=True):
        pack = Pack(backbone, CONFIG, 1)
        pack.add(started(concept, backbone))
        assert_close(gradient, gradients(pack)[0], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_learned_and_pictures_made(request: pytest.FixtureRequest, family: str, dtype: str) -> None:
    backbone = load_backbone(str(request.getfixturevalue(family)), device="cuda", dtype=dtype)
    before = {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}
    # So many that the loss scale of float16 has come down
    concepts = [dataclasses.replace(concept, steps=24) for concept in CONCEPTS]
    tasks = [ConceptTask(concept, backbone, CONFIG) for concept in concepts]
    run(tasks, backbone, 3, CONFIG)
    for task in tasks:
        assert (task.failed, task.step) == (None, 24)
        assert task.loss_history.isfinite().all()
        assert task.vectors.isfinite().all()
        assert not torch.equal(task.vectors, task.initial_word)
    assert all(torch.equal(value, before[name]) for name, value in backbone.denoiser.state_dict().items())
    review = CONFIG.review.model_copy(update={"num_inference_steps": 2, "sampler": "euler"})
    pictures = sample_images(backbone, {}, ["a cat"], [0], review)
    assert pictures.shape[0] == 1
    assert pictures.std() > 0


@pytest.mark.parametrize("family", ["tiny_sd", "tiny_sdxl", "tiny_flux"])
def test_checkpointed_activations_give_the_same_gradient(request: pytest.FixtureRequest, family: str) -> None:
    backbone = load_backbone(str(request.getfixturevalue(family)), device="cuda", dtype="float32")
    pack = filled(backbone)
    expected = gradients(pack)
    backbone.checkpoint_activations()
    for found, gradient in zip(gradients(pack), expected, strict=True):
        assert_close(found, gradient, TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_compiled_equals_eager(tiny_sd: Path, dtype: str) -> None:
    """`compile_step` compares the gradients itself, and says whether it keeps what was compiled."""
    config = JobConfig.from_dict({"training": {"batch_size": 3}})
    backbone = load_backbone(str(tiny_sd), device="cuda", dtype=dtype)
    pack = filled(backbone, config)
    expected = gradients(pack)
    assert compile_step(backbone, pack.tasks[0], len(CONCEPTS), config)
    for found, gradient in zip(gradients(pack), expected, strict=True):
        assert_close(found, gradient, TOLERANCE[dtype])


@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_state_goes_on_on_any_device(
    exact: Backbone, backbone64: Backbone, devices: tuple[str, str]
) -> None:
    """A preempted concept may go on where there is no GPU, and the other way round."""
    first, second = ({"cuda": exact, "cpu": backbone64}[device] for device in devices)
    for concept in CONCEPTS:
        task, pack = ConceptTask(concept, first, CONFIG), Pack(first, CONFIG, 1)
        pack.add(task)
        for _ in range(3):
            pack.step()
        resumed = ConceptTask(concept, second, CONFIG)
        resumed.restore(task.to_bytes())
        run([resumed], second, 1, CONFIG)
        assert_same(resumed, alone(concept, first, CONFIG), 1e-4)


def test_a_step_that_runs_out_of_memory_changes_nothing(tiny_sd: Path) -> None:
    """Really out of memory: this process may have no more than what it holds and some. Half of the pack goes on."""
    backbone = load_backbone(str(tiny_sd), device="cuda", dtype="float32")
    many = [tiny.concept(number, batch_size=512) for number in range(16)]
    pack = Pack(backbone, CONFIG, len(many))
    for concept in many:
        pack.add(ConceptTask(concept, backbone, CONFIG))
    before = [task.state_dict() for task in pack.tasks]
    used, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.reset_peak_memory_stats()
    pack.losses_and_gradient()
    needed = torch.cuda.max_memory_allocated() - used
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((used + 0.7 * needed) / total)
    try:
        with pytest.raises(RuntimeError) as raised:
            pack.step()
        assert is_out_of_memory(raised.value)
        del raised  # and with its traceback the tensors of the step
        gc.collect()
        for task, state in zip(pack.tasks, before, strict=True):
            for name, value in task.state_dict().items():
                torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True, msg=name)
        torch.cuda.empty_cache()
        for task in pack.tasks[len(many) // 2 :]:
            pack.remove(task)
        assert pack.step() == []
        assert [task.step for task in pack.tasks] == [1] * (len(many) // 2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_pack_size_is_measured(tiny_sd: Path) -> None:
    config = JobConfig.from_dict({"pack": {"size": "auto", "max_size": 8}})
    backbone = load_backbone(str(tiny_sd), device="cuda", dtype="float16")
    task = ConceptTask(CONCEPTS[0], backbone, config)
    assert choose_pack_size(backbone, task, config) in {1, 2, 4, 8}
