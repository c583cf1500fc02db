from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import tiny
from tests.support.learning import alone, assert_same, digest, random_masks, run
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask, learning_rate

CONFIG = JobConfig.from_dict(
    {"training": {"max_grad_norm": 0.05, "lr_schedule": "cosine", "lr_warmup_steps": 2}}
)
CONCEPTS = [
    tiny.concept(0, steps=4, batch_size=1),
    tiny.concept(
        1, steps=2, batch_size=3, num_vectors=2, initializer_token="red house", masks=random_masks(1)
    ),
    tiny.concept(2, steps=5, batch_size=2, num_vectors=3, captions=("a {}", "one {} here")),
    tiny.concept(
        3, steps=3, batch_size=2, learning_rate=0.05, templates=("a {}", "my {}", "{}", "the {} cat")
    ),
    tiny.concept(4, steps=1, batch_size=1, seed=2**60),
    tiny.concept(5, steps=4, batch_size=1, lr_schedule="constant"),
]


@pytest.fixture(scope="module")
def learned_alone(backbone64: StableDiffusion) -> list[ConceptTask]:
    return [alone(concept, backbone64, CONFIG) for concept in CONCEPTS]


@settings(max_examples=12, deadline=None)
@given(order=st.lists(st.sampled_from(range(len(CONCEPTS))), min_size=1, unique=True), size=st.integers(1, 5))
def test_packed_equals_alone(
    backbone64: StableDiffusion, learned_alone: list[ConceptTask], order: list[int], size: int
) -> None:
    tasks = [ConceptTask(CONCEPTS[index], backbone64, CONFIG) for index in order]
    run(tasks, backbone64, size, CONFIG)
    for index, task in zip(order, tasks, strict=True):
        assert task.done
        assert_same(task, learned_alone[index])


@settings(max_examples=8, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=8))
def test_leaving_and_coming_back_changes_nothing(
    backbone64: StableDiffusion, learned_alone: list[ConceptTask], moves: list[tuple[int, bool]]
) -> None:
    """Concepts leave a pack between steps and return, some of them through their state files."""
    tasks = [ConceptTask(CONCEPTS[index], backbone64, CONFIG) for index in range(3)]
    pack = Pack(backbone64, CONFIG, 2)
    for index, through_file in moves:
        if tasks[index] in pack.tasks:
            pack.remove(tasks[index])
            if through_file:
                data = tasks[index].to_bytes()
                tasks[index] = ConceptTask(CONCEPTS[index], backbone64, CONFIG)
                tasks[index].restore(data)
        elif pack.free and not tasks[index].done:
            pack.add(tasks[index])
        if pack.tasks:
            pack.step()
    for task in list(pack.tasks):
        pack.remove(task)
    run([task for task in tasks if not task.done], backbone64, 2, CONFIG)
    for task, expected in zip(tasks, learned_alone, strict=False):
        assert_same(task, expected)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"max_grad_norm": 0.01},
        {"lr_schedule": "linear", "lr_warmup_steps": 3, "adam_beta1": 0.5, "adam_beta2": 0.9},
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_pack_of_one_is_plain_textual_inversion(
    backbone: StableDiffusion, backbone_v: StableDiffusion, training: dict[str, Any], prediction: str
) -> None:
    """Against a loop written with torch's own optimizer and clipping, fed with the same draws."""
    model = backbone if prediction == "epsilon" else backbone_v
    config = JobConfig.from_dict({"training": training})
    concept = tiny.concept(steps=6, num_vectors=2, batch_size=3)
    task = alone(concept, model, config)

    plain = ConceptTask(concept, model, config)
    word = torch.nn.Parameter(plain.vectors)
    optimizer = torch.optim.AdamW(
        [word],
        betas=(config.training.adam_beta1, config.training.adam_beta2),
        eps=config.training.adam_epsilon,
        weight_decay=0.0,
    )
    losses = []
    for step in range(6):
        plain.step = step
        draws = plain.draw()
        latents = plain.tensors["latent_means"][draws.latents]
        latents = latents + plain.tensors["latent_stds"][draws.latents] * draws.noise[0]
        condition = model.encode(plain.tensors["prompt_ids"][draws.prompts], word)
        loss = model.denoising_loss(latents, draws.noise[1], model.levels(draws.levels), condition).mean()
        optimizer.zero_grad()
        loss.backward()
        if config.training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([word], config.training.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(step, 6, concept.learning_rate, config.training)
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(task.vectors, word.detach(), rtol=1e-5, atol=1e-6)
    assert task.loss_history.tolist() == pytest.approx(losses, rel=1e-5)


def test_a_concept_has_the_schedule_of_its_own(backbone64: StableDiffusion) -> None:
    own = alone(tiny.concept(0, steps=6, lr_schedule="linear"), backbone64, CONFIG)
    linear = JobConfig.from_dict({"training": {**CONFIG.training.model_dump(), "lr_schedule": "linear"}})
    assert_same(own, alone(tiny.concept(0, steps=6), backbone64, linear))
    assert not torch.equal(own.vectors, alone(tiny.concept(0, steps=6), backbone64, CONFIG).vectors)


def wide(index: int, **changes: Any) -> Concept:
    """A concept of the shape 16 x 32."""
    pixels = np.random.default_rng(index).integers(0, 256, (2, 1, 16, 32, 3), dtype=np.uint8)
    return tiny.concept(index, images=pixels, **changes)


def test_packed_equals_alone_in_another_shape(backbone64: StableDiffusion) -> None:
    masks = np.concatenate([random_masks(1, 2), random_masks(2, 2)], axis=-1)
    concepts = [wide(5, steps=2), wide(6, steps=3, batch_size=3, masks=masks)]
    tasks = [ConceptTask(concept, backbone64, CONFIG) for concept in concepts]
    assert tasks[0].tensors["latent_means"].shape[2:] == (8, 16)
    run(tasks, backbone64, 2, CONFIG)
    for task, concept in zip(tasks, concepts, strict=True):
        assert_same(task, alone(concept, backbone64, CONFIG))


def test_a_pack_has_one_shape(backbone: StableDiffusion) -> None:
    pack = Pack(backbone, CONFIG, 2)
    assert pack.shape is None
    pack.add(ConceptTask(wide(5), backbone, CONFIG))
    assert pack.shape == (16, 32)
    with pytest.raises(ValueError, match=r"'concept-0' has images of the shape \(16, 16\), not \(16, 32\)"):
        pack.add(ConceptTask(CONCEPTS[0], backbone, CONFIG))


def test_frozen_stays_frozen(backbone: StableDiffusion) -> None:
    before = digest(backbone)
    tasks = [ConceptTask(concept, backbone, CONFIG) for concept in CONCEPTS]
    run(tasks, backbone, 3, CONFIG)
    assert all(task.done for task in tasks)
    assert digest(backbone) == before
    assert all(p.grad is None for p in (*backbone.unet.parameters(), *backbone.text_encoder.parameters()))


def poisoned(concept: Concept, backbone: StableDiffusion, config: JobConfig) -> ConceptTask:
    """A task whose loss is never finite."""
    task = ConceptTask(concept, backbone, config)
    task.tensors["latent_means"].fill_(math.inf)
    return task


@pytest.mark.parametrize("limit", [0, 1, 3, 14])
def test_a_concept_that_is_not_finite_fails_alone(
    backbone64: StableDiffusion, learned_alone: list[ConceptTask], limit: int
) -> None:
    config = JobConfig.from_dict({"training": {**CONFIG.training.model_dump(), "max_nonfinite_steps": limit}})
    tasks = [ConceptTask(concept, backbone64, config) for concept in CONCEPTS[:3]]
    bad = poisoned(tiny.concept(7, steps=30, num_vectors=2), backbone64, config)
    before = bad.state_dict()
    run([tasks[0], bad, *tasks[1:]], backbone64, 3, config)
    for task, expected in zip(tasks, learned_alone, strict=False):
        assert task.failed is None
        assert_same(task, expected)
    assert bad.failed is not None
    assert (
        f"not finite in {max(1, limit)} steps in a row, the last of them step {max(1, limit) - 1}"
        in bad.failed
    )
    assert bad.step == len(bad.loss_history) == max(1, limit)
    assert torch.equal(bad.state_dict()["vectors"], before["vectors"])
    assert torch.equal(bad.state_dict()["exp_avg"], before["exp_avg"])


def test_steps_that_are_not_finite_are_skipped(backbone: StableDiffusion) -> None:
    """Two bad steps of six: Adam counts four updates, and the run of bad steps is forgotten."""
    config = JobConfig.from_dict({"training": {"max_nonfinite_steps": 3}})
    task = ConceptTask(tiny.concept(steps=6), backbone, config)
    pack = Pack(backbone, config, 1)
    pack.add(task)
    means = task.tensors["latent_means"].clone()
    for step in range(6):
        bad = step in (2, 3)
        task.tensors["latent_means"].copy_(torch.full_like(means, math.nan) if bad else means)
        before = task.vectors
        pack.step()
        assert torch.equal(task.vectors, before) == bad
    assert task.done
    assert not task.failed
    assert task.tensors["updates"].item() == 4
    assert task.tensors["nonfinite_steps"].item() == 0
    assert task.loss_history.isfinite().tolist() == [True, True, False, False, True, True]


def test_running_out_of_memory_changes_nothing(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(backbone, CONFIG, 2)
    tasks = [ConceptTask(concept, backbone, CONFIG) for concept in CONCEPTS[:2]]
    for task in tasks:
        pack.add(task)
    pack.step()
    before = [task.to_bytes() for task in tasks]
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "predict", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
        with pytest.raises(torch.OutOfMemoryError):
            pack.step()
    assert [task.to_bytes() for task in tasks] == before
    pack.remove(tasks[1])
    pack.step()
    assert [task.step for task in tasks] == [2, 1]


def test_checkpointed_activations_need_less_memory_and_change_nothing(
    checkpointing: StableDiffusion,
) -> None:
    def learned() -> tuple[list[bytes], int]:
        tasks = [ConceptTask(concept, checkpointing, CONFIG) for concept in CONCEPTS]
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        weights = {weight.untyped_storage().data_ptr() for weight in checkpointing.unet.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(tasks, checkpointing, 3, CONFIG)
        activations = [size for place, size in kept.items() if place not in weights]
        return [task.to_bytes() for task in tasks], sum(activations)

    words, memory = learned()
    checkpointing.checkpoint_activations()
    words_again, less_memory = learned()
    assert words_again == words
    assert less_memory < memory / 2


@pytest.mark.parametrize(("dtype", "scale", "share"), [("float16", 2.0**16, 0.1), ("bfloat16", 1, 0.3)])
def test_half_precision(
    tiny_sd: Path, learned_alone: list[ConceptTask], dtype: str, scale: float, share: float
) -> None:
    """Words are about the same (in float16 with a loss scale), and word vectors stay float32."""
    backbone = load_backbone(str(tiny_sd), device="cpu", dtype=dtype)
    tasks = [ConceptTask(concept, backbone, CONFIG) for concept in CONCEPTS[:3]]
    assert {task.tensors["loss_scale"].item() for task in tasks} == {scale}
    run(tasks, backbone, 2, CONFIG)
    for task, expected in zip(tasks, learned_alone, strict=False):
        assert task.tensors["vectors"].dtype == torch.float32
        assert task.tensors["updates"].item() == task.steps
        moved = expected.vectors - ConceptTask(expected.concept, backbone, CONFIG).vectors
        assert (task.vectors - expected.vectors).norm() < share * moved.norm()


def test_images_of_another_resolution(backbone64: StableDiffusion) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 24, 24, 3), dtype=np.uint8)
    task = alone(tiny.concept(images=images), backbone64, CONFIG)
    assert task.done
    assert task.tensors["latent_means"].shape == (6, 4, 12, 12)


def test_slots(backbone: StableDiffusion) -> None:
    pack = Pack(backbone, CONFIG, 2)
    tasks = [ConceptTask(concept, backbone, CONFIG) for concept in CONCEPTS[:3]]
    pack.add(tasks[0])
    pack.add(tasks[1])
    assert pack.free == 0
    with pytest.raises(ValueError, match="all 2 slots"):
        pack.add(tasks[2])
    assert pack.step() == []
    assert pack.step() == [tasks[1]]
    assert (tasks[1].done, pack.free, pack.tasks) == (True, 1, [tasks[0]])
    # What has left doesn't keep the memory of the whole pack.
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in tasks[1].tensors.values())
    with pytest.raises(ValueError, match="nothing left to do for 'concept-1'"):
        pack.add(tasks[1])


def test_a_task_can_be_read_while_it_runs(backbone: StableDiffusion) -> None:
    pack = Pack(backbone, CONFIG, 2)
    task = ConceptTask(CONCEPTS[0], backbone, CONFIG)
    pack.add(task)
    pack.step()
    seen, saved = task.vectors, task.to_bytes()
    pack.add(ConceptTask(CONCEPTS[2], backbone, CONFIG))
    assert task.to_bytes() == saved
    pack.step()
    assert not torch.equal(task.vectors, seen)
    assert len(task.loss_history) == 2
