"""What holds for every family of flow matching: tiny models of the real classes, in float64 where it is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny, tiny_flow
from tests.support.learning import alone, assert_same, digest, gradients_by_target, random_masks, run
from textinv_ray.config.job import JobConfig, ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.flow import FlowBackbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.util.errors import UserError

CONFIG = JobConfig.from_dict({"training": {"max_grad_norm": 0.05}})
CONCEPTS = [
    tiny.concept(0, steps=3, batch_size=1),
    tiny.concept(1, steps=2, batch_size=3, num_vectors=2, norm_control="rescale", masks=random_masks(1)),
    tiny.concept(2, steps=4, batch_size=2, norm_control="regularize", regularization_weight=0.01),
]
FAMILIES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], FlowBackbone]]] = {
    "sd3": (tiny_flow.save_stable_diffusion_3, tiny_flow.load_sd3),
    "flux": (tiny_flow.save_flux, tiny_flow.load_flux),
    "sana": (tiny_flow.save_sana, tiny_flow.load_sana),
    "klein": (tiny_flow.save_flux2_klein, tiny_flow.load_flux2_klein),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FlowBackbone:
    """In float64."""
    save, load = FAMILIES[request.param]
    backbone = load(save(tmp_path_factory.mktemp(request.param)))
    for network in backbone.models:
        network.to(torch.float64)
    return backbone


@pytest.fixture(scope="module")
def learned_alone(model: FlowBackbone) -> list[ConceptTask]:
    return [alone(concept, model, CONFIG) for concept in CONCEPTS]


def orders() -> st.SearchStrategy[Sequence[int]]:
    return st.lists(st.sampled_from(range(len(CONCEPTS))), min_size=2, unique=True)


@settings(max_examples=3, deadline=None)
@given(order=orders(), size=st.integers(2, 3))
def test_packed_equals_alone(
    model: FlowBackbone, learned_alone: list[ConceptTask], order: list[int], size: int
) -> None:
    before = digest(model)
    tasks = [ConceptTask(CONCEPTS[index], model, CONFIG) for index in order]
    run(tasks, model, size, CONFIG)
    for index, task in zip(order, tasks, strict=True):
        assert_same(task, learned_alone[index])
    assert digest(model) == before


def test_a_state_is_saved_and_restored(model: FlowBackbone, learned_alone: list[ConceptTask]) -> None:
    task = ConceptTask(CONCEPTS[2], model, CONFIG)
    pack = Pack(model, CONFIG, 1)
    pack.add(task)
    pack.step()
    resumed = ConceptTask(CONCEPTS[2], model, CONFIG)
    resumed.restore(task.to_bytes())
    run([resumed], model, 1, CONFIG)
    assert_same(resumed, learned_alone[2])


def test_activations_may_be_computed_again(model: FlowBackbone, learned_alone: list[ConceptTask]) -> None:
    model.checkpoint_activations()
    try:
        assert_same(alone(CONCEPTS[1], model, CONFIG), learned_alone[1])
    finally:
        model.denoiser.disable_gradient_checkpointing()


def test_the_flow_leads_straight_from_latents_to_noise(model: FlowBackbone) -> None:
    latents, noise = torch.randn(2, 3, *tiny.LATENT_SHAPE, dtype=torch.float64)
    levels = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    noisy, target = model.corrupt(latents, noise, levels)
    assert torch.equal(noisy[0], latents[0])
    assert torch.equal(noisy[2], noise[2])
    torch.testing.assert_close(noisy[1], latents[1] + 0.25 * target[1])


def test_packed_equals_alone_in_another_shape(model: FlowBackbone) -> None:
    """16 x 32 pixels; Sana's tiny autoencoder has fewer latents than the others."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 32, 3), dtype=np.uint8)
    concepts = [tiny.concept(index, images=pixels, steps=1 + index) for index in range(2)]
    tasks = [ConceptTask(concept, model, CONFIG) for concept in concepts]
    height, width = tasks[0].tensors["latent_means"].shape[2:]
    assert width == 2 * height
    run(tasks, model, 2, CONFIG)
    for task, concept in zip(tasks, concepts, strict=True):
        assert_same(task, alone(concept, model, CONFIG))


def test_what_a_mask_leaves_out_has_no_gradient(model: FlowBackbone) -> None:
    same, outside, inside = gradients_by_target(model, CONFIG)
    torch.testing.assert_close(outside, same, rtol=1e-9, atol=1e-12)
    assert (inside - same).norm() > 1e-3 * same.norm()


def test_levels_move_with_the_uniform_number(model: FlowBackbone) -> None:
    levels = model.levels(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert levels.dtype == torch.float64
    assert (levels.diff() > 0).all()
    shift = model.shift((8, 8))
    assert float(levels[1]) == pytest.approx(shift / (1 + shift))


def test_weights_by_signal_to_noise_ratio_are_refused(model: FlowBackbone) -> None:
    config = JobConfig.from_dict({"training": {"loss_weight": "min_snr"}})
    with pytest.raises(UserError, match=r"training\.loss_weight"):
        alone(CONCEPTS[0], model, config)


def test_a_sampler_that_the_family_has_not(model: FlowBackbone) -> None:
    with pytest.raises(UserError, match="has no 'ddim'"):
        model.sampler("ddim")


@pytest.mark.parametrize("num_vectors", [1, 2])
def test_words_are_saved_and_read(model: FlowBackbone, num_vectors: int) -> None:
    vectors = torch.randn(num_vectors, model.embedding_dim)
    token, read = words.load_learned_embeds(model, words.save_learned_embeds(model, "<x>", vectors))
    assert token == "<x>"
    assert torch.equal(read, vectors)


def test_the_compiled_denoiser_predicts_the_same(model: FlowBackbone) -> None:
    """For fewer samples than it is compiled for, too: what is filled up stays apart."""
    ids = words.tokenize(model, ["a photo of <x>", "my <x>"], {"<x>": 1})
    vectors = torch.randn(1, model.embedding_dim, dtype=torch.float64) * 0.1
    noisy, levels = torch.randn(2, *tiny.LATENT_SHAPE, dtype=torch.float64), torch.tensor([0.2, 0.7])
    condition = model.encode(ids, vectors.requires_grad_())
    expected = model.predict(noisy, levels, condition)
    model.compiled = CompiledDenoiser(model.denoiser, 3, backend="eager")
    try:
        found = model.predict(noisy, levels, condition)
    finally:
        model.compiled = None
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision(name: str, tmp_path: Path) -> None:
    save, _ = FAMILIES[name]
    backbone = load_backbone(str(save(tmp_path)), device="cpu", dtype="bfloat16")
    assert {network.dtype for network in backbone.models} == {torch.bfloat16}
    task = alone(CONCEPTS[1], backbone, CONFIG)
    assert task.loss_history.isfinite().all()
    config = ReviewConfig(num_inference_steps=2, sampler="euler")
    assert sample_images(backbone, {"<c1>": task.vectors}, ["a <c1>"], [0], config).std() > 5
