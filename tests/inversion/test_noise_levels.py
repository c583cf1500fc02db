"""Noise levels: distributions, the shift, weights by signal-to-noise ratio; against diffusers' training code."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.learning import alone, assert_same
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import TimestepsConfig, TrainingConfig
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.noise_levels import drawn, quantile, shifted, snr_weights
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.words import tokenize

EVENLY = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
NAMES = ["uniform", "logit_normal", "mode"]


@pytest.mark.parametrize("name", NAMES)
def test_levels_have_the_distribution_of_diffusers_script(name: str) -> None:
    config = TimestepsConfig(logit_mean=0.3, logit_std=0.8)
    torch.manual_seed(0)
    theirs = compute_density_for_timestep_sampling(name, 4000, 0.3, 0.8, config.mode_scale)
    found = quantile(EVENLY, name, config)  # type: ignore[arg-type]
    assert scipy.stats.ks_2samp(found.numpy(), theirs.numpy()).pvalue > 0.01


@settings(deadline=None)
@given(
    uniform=st.floats(0, 1, exclude_max=True),
    name=st.sampled_from(NAMES),
    shift=st.floats(0.01, 100),
    scale=st.floats(-1, 1.75),
)
def test_levels_lie_in_the_unit_interval(uniform: float, name: str, shift: float, scale: float) -> None:
    config = TimestepsConfig(distribution=name, shift=shift, mode_scale=scale)  # type: ignore[arg-type]
    level = float(drawn(torch.tensor([uniform], dtype=torch.float64), config, "uniform", 1.0))
    assert -1e-9 <= level <= 1 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_monotone(name: str) -> None:
    steps = quantile(EVENLY, name, TimestepsConfig()).diff()  # type: ignore[arg-type]
    assert (steps > 0).all() or (steps < 0).all()


def test_a_shift_and_its_inverse() -> None:
    torch.testing.assert_close(shifted(shifted(EVENLY, 3.0), 1 / 3), EVENLY)
    assert shifted(EVENLY, 1.0) is EVENLY
    assert float(shifted(torch.tensor(0.5), 3.0)) == 0.75


def test_the_model_says_what_auto_is() -> None:
    ours = drawn(EVENLY, TimestepsConfig(), "logit_normal", 3.0)
    chosen = TimestepsConfig(distribution="logit_normal", shift=3.0)
    assert torch.equal(ours, drawn(EVENLY, chosen, "uniform", 1.0))
    assert torch.equal(drawn(EVENLY, TimestepsConfig(), "uniform", 1.0), EVENLY)


def test_levels_are_mapped_to_a_range() -> None:
    low = drawn(EVENLY, TimestepsConfig(min=0.2, max=0.5, distribution="logit_normal"), "uniform", 1.0)
    torch.testing.assert_close(low, 0.2 + 0.3 * drawn(EVENLY, TimestepsConfig(), "logit_normal", 1.0))
    with pytest.raises(ValueError, match=r"min 0\.5 is not below max 0\.5"):
        TimestepsConfig(min=0.5, max=0.5)


def test_offset_noise_moves_a_samples_channels_as_a_whole(backbone64: StableDiffusion) -> None:
    """Its other draws are those without an offset."""
    concept = tiny.concept(batch_size=64)
    plain, offset = (
        ConceptTask(concept, backbone64, JobConfig.load("sd15", [f"training.noise_offset={value}"])).draw()
        for value in (0, 0.1)
    )
    assert torch.equal(offset.noise[0], plain.noise[0])
    assert torch.equal(offset.prompts, plain.prompts)
    moved = (offset.noise[1] - plain.noise[1]).double()
    torch.testing.assert_close(moved, moved[..., :1, :1].expand_as(moved), atol=1e-6, rtol=0)
    numbers = moved[..., 0, 0].flatten() / 0.1
    assert scipy.stats.kstest(numbers.numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_dropped_captions_leave_the_word_alone(backbone64: StableDiffusion, share: float) -> None:
    config = JobConfig.load("sd15", [f"training.caption_dropout={share}"])
    concept = tiny.concept(batch_size=400, captions=("a red {}",), per_image_probability=0.5)
    task = ConceptTask(concept, backbone64, config)
    ids = task.tensors["prompt_ids"][task.draw().prompts]
    alone, beside = tokenize(backbone64, ["x", "x with y"], {"x": 1, "y": 1})
    bare = (ids[:, :3] == alone[:3]).all(dim=1) | ((ids[:, 1] == -1) & (ids[:, 2] == beside[2]))
    assert abs(bare.double().mean() - share) < 0.08


def test_weights_are_those_of_the_papers(backbone64: StableDiffusion) -> None:
    """diffusers' script has min-SNR weights of both predictions; the other weight is checked by its definition."""
    timesteps = torch.tensor([0, 10, 500, 999])
    snr = compute_snr(backbone64.scheduler, timesteps).double()
    assert float(snr[0]) > 5 > float(snr[-1])
    smaller = torch.stack([snr, 5 * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    min_snr, debiased = TrainingConfig(loss_weight="min_snr"), TrainingConfig(loss_weight="debiased")
    found = {
        (training.loss_weight, predicts_v): snr_weights(snr, training, predicts_v=predicts_v)
        for training in (min_snr, debiased)
        for predicts_v in (False, True)
    }
    torch.testing.assert_close(found["min_snr", False], smaller / snr)
    torch.testing.assert_close(found["min_snr", True], smaller / (snr + 1))
    torch.testing.assert_close(found["debiased", False], snr**-0.5)
    torch.testing.assert_close(found["debiased", True], snr**0.5 / (snr + 1))
    torch.testing.assert_close(backbone64.loss_weights(timesteps, min_snr), found["min_snr", False])
    assert snr_weights(snr, TrainingConfig(), predicts_v=False) is None


@pytest.mark.parametrize("weight", ["min_snr", "debiased"])
@pytest.mark.parametrize("predicts_v", [False, True])
def test_weights_are_finite_at_zero_terminal_snr(weight: str, predicts_v: bool) -> None:
    training = TrainingConfig(loss_weight=weight)  # type: ignore[arg-type]
    found = snr_weights(torch.zeros(1), training, predicts_v=predicts_v)
    assert found is not None
    assert found.isfinite().all()
    if predicts_v:
        assert float(found) == 0


def test_settings_reach_the_pack(backbone64: StableDiffusion) -> None:
    """The loss of a step with weights and chosen levels is that of its samples, and packed equals alone."""
    config = JobConfig.from_dict(
        {
            "training": {
                "loss_weight": "min_snr",
                "timesteps": {"distribution": "mode", "shift": 2.0},
                "noise_offset": 0.1,
                "caption_dropout": 0.5,
            }
        }
    )
    concepts = [tiny.concept(index, steps=2, batch_size=2 + index) for index in range(2)]
    tasks = [ConceptTask(concept, backbone64, config) for concept in concepts]
    pack = Pack(backbone64, config, 2)
    for task in tasks:
        pack.add(task)
    losses, _ = pack.losses_and_gradient()
    draws, tensors = tasks[0].draw(), tasks[0].tensors
    means, stds = tensors["latent_means"][draws.latents], tensors["latent_stds"][draws.latents]
    latents = means + stds * draws.noise[0]
    u = draws.levels
    mode = 1 - u - 1.29 * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    timesteps = (2 * mode / (1 + mode) * 1000).long()
    condition = backbone64.encode(tensors["prompt_ids"][draws.prompts], tasks[0].tensors["vectors"])
    plain = backbone64.denoising_loss(latents, draws.noise[1].double(), timesteps, condition)
    snr = compute_snr(backbone64.scheduler, timesteps).double()
    torch.testing.assert_close(losses[0], (plain * snr.clamp(max=5) / snr).mean(), rtol=1e-6, atol=0)
    while pack.tasks:
        pack.step()
    for task, concept in zip(tasks, concepts, strict=True):
        assert_same(task, alone(concept, backbone64, config))
