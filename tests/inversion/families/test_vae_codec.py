"""Latents of images and pictures of latents, as diffusers has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import tiny
from textinv_ray.inversion.families import vae_codec
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion


@pytest.fixture
def own(tiny_sd: Path) -> StableDiffusion:
    """A backbone that the test may change."""
    return tiny.load_sd(tiny_sd)


@pytest.mark.parametrize("at_once", [2, 5])
def test_latent_moments(backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(vae_codec, "PIXELS_AT_ONCE", at_once * 16 * 16)
    means, stds = backbone.latent_moments(images)
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = backbone.vae.encode(pixels).latent_dist
    scale = backbone.vae.config.scaling_factor
    torch.testing.assert_close(means, posterior.mean * scale)
    torch.testing.assert_close(stds, posterior.std * scale)
    assert means.shape == (5, *tiny.LATENT_SHAPE)


@pytest.mark.parametrize("shift", [None, 0.5, [0.1, -0.2, 0.3, 0.4]])
def test_latents_are_shifted_and_scaled_as_the_vae_says(
    own: StableDiffusion, backbone: StableDiffusion, shift: float | list[float] | None
) -> None:
    """(z - shift) scale, as diffusers has it, and back."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    key = "latents_mean" if isinstance(shift, list) else "shift_factor"
    own.vae.register_to_config(**{key: shift, "scaling_factor": 0.25})
    if isinstance(shift, list):
        own.vae.register_to_config(latents_std=[2.0, 2.0, 2.0, 2.0])
    plain = backbone.vae.config.scaling_factor
    means, stds = (part / plain for part in backbone.latent_moments(images))
    scale = 0.25 / 2 if isinstance(shift, list) else 0.25
    offset = torch.tensor(shift or 0.0).reshape(-1, 1, 1) if shift else torch.zeros(1, 1, 1)
    found_means, found_stds = own.latent_moments(images)
    torch.testing.assert_close(found_means, (means - offset) * scale)
    torch.testing.assert_close(found_stds, stds * scale)
    assert np.abs(own.decode(found_means).astype(int) - backbone.decode(means * plain)).max() <= 1


def test_a_vae_that_overflows_says_what_to_do(own: StableDiffusion) -> None:
    for weight in own.vae.parameters():
        weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"the VAE overflows in float32: set model\.vae_dtype to"):
        own.latent_moments(np.zeros((1, 16, 16, 3), np.uint8))
