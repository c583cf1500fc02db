"""Weights of the loss by masks: their formula, and that what a mask leaves out has no part in the gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.learning import gradients_by_target, random_masks
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.pixel_weights import pixel_weights
from textinv_ray.inversion.task import ConceptTask


@settings(deadline=None, max_examples=20)
@given(unmasked=st.floats(0.01, 1), seed=st.integers(0, 99), flips=st.booleans())
def test_the_formula(unmasked: float, seed: int, flips: bool) -> None:
    masks = random_masks(seed)
    found = pixel_weights(tiny.concept(masks=masks), (8, 8), flips=flips, unmasked_weight=unmasked)
    assert found.dtype == torch.float64
    assert found.shape == (3 * (1 + flips), 1, 8, 8)
    for index, mask in enumerate(masks[:, 0]):
        by_area = mask.reshape(8, 2, 8, 2).mean(axis=(1, 3)) / 255
        weights = unmasked + (1 - unmasked) * by_area
        expected = weights / weights.mean()
        np.testing.assert_allclose(found[index * (1 + flips), 0], expected, rtol=1e-12)
        if flips:
            np.testing.assert_allclose(found[2 * index + 1, 0], expected[:, ::-1], rtol=1e-12)


@pytest.mark.parametrize("unmasked", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_padding_has_no_weight(unmasked: float, masked: bool) -> None:
    masks = np.zeros((3, 1, 16, 16), np.uint8)
    masks[:, :, 4:8] = 255
    concept = tiny.concept(
        masks=masks if masked else None, paddings=((0, 4, 0, 4), (3, 0, 3, 0), (0, 0, 0, 0))
    )
    found = pixel_weights(concept, (8, 8), flips=True, unmasked_weight=unmasked)
    torch.testing.assert_close(found.mean(dim=(2, 3)), torch.ones(6, 1, dtype=torch.float64))
    assert (found[0, 0, :2] == 0).all()
    assert (found[0, 0, 6:] == 0).all()
    inside = found[0, 0, 2:6]
    if masked:
        assert float(inside[3, 0] / inside[0, 0]) == pytest.approx(unmasked)
    else:
        assert (inside == 2).all()
        row = found[2, 0, 0]  # one and a half latents at each side are padding
        assert (row / row[2]).tolist() == pytest.approx([0, 0.5, 1, 1, 1, 1, 0.5, 0])


@pytest.mark.parametrize(("level", "unmasked"), [(255, 0.0), (255, 0.1), (3, 0.0), (77, 0.1)])
def test_an_even_mask_changes_nothing(level: int, unmasked: float) -> None:
    masks = np.full((3, 1, 16, 16), level, np.uint8)
    found = pixel_weights(tiny.concept(masks=masks), (8, 8), flips=False, unmasked_weight=unmasked)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-12)


def test_without_masks_all_weights_are_one() -> None:
    found = pixel_weights(tiny.concept(), (8, 4), flips=True, unmasked_weight=0.1)
    assert torch.equal(found, torch.ones(6, 1, 8, 4, dtype=torch.float64))


def test_with_weight_one_masks_change_nothing() -> None:
    found = pixel_weights(tiny.concept(masks=random_masks(0)), (8, 8), flips=False, unmasked_weight=1)
    assert torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize("weight", ["none", "min_snr", "debiased"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_a_mask_leaves_out_has_no_gradient(
    backbone: StableDiffusion, backbone_v: StableDiffusion, prediction: str, weight: str
) -> None:
    model = backbone if prediction == "epsilon" else backbone_v
    config = JobConfig.from_dict({"training": {"loss_weight": weight}})
    same, outside, inside = gradients_by_target(model, config)
    torch.testing.assert_close(outside, same, rtol=1e-4, atol=1e-7)
    assert (inside - same).norm() > 1e-2 * same.norm()


def test_the_loss_is_the_weighted_mean_of_squared_errors(backbone64: StableDiffusion) -> None:
    config = JobConfig.from_dict({"training": {"unmasked_weight": 0.3, "loss_weight": "min_snr"}})
    concepts = [tiny.concept(0, masks=random_masks(0), batch_size=3), tiny.concept(1)]
    tasks = [ConceptTask(concept, backbone64, config) for concept in concepts]
    pack = Pack(backbone64, config, 2)
    for task in tasks:
        pack.add(task)
    losses, _ = pack.losses_and_gradient()
    for task, loss in zip(tasks, losses, strict=True):
        draws, tensors = task.draw(), task.tensors
        z = tensors["latent_means"][draws.latents]
        z = z + tensors["latent_stds"][draws.latents] * draws.noise[0]
        levels = backbone64.levels(draws.levels)
        noisy, target = backbone64.corrupt(z, draws.noise[1].double(), levels)
        condition = backbone64.encode(tensors["prompt_ids"][draws.prompts], tensors["vectors"])
        errors = (backbone64.predict(noisy, levels, condition) - target) ** 2
        expected = []
        for sample, chosen in enumerate(draws.latents.tolist()):
            weights = torch.ones(8, 8, dtype=torch.float64)
            if task.concept.masks is not None:
                mask = task.concept.masks[chosen // 2, 0]
                mask = mask[:, ::-1] if chosen % 2 else mask
                area = torch.tensor(mask.reshape(8, 2, 8, 2).mean(axis=(1, 3)) / 255)
                weights = 0.3 + 0.7 * area
            expected.append((errors[sample] * weights).sum() / (4 * weights.sum()))
        snr = backbone64.scheduler.alphas_cumprod[levels].double()
        snr = snr / (1 - snr)
        samples = torch.stack(expected) * snr.clamp(max=5) / snr
        torch.testing.assert_close(loss, samples.mean().detach(), rtol=1e-9, atol=0)
