"""The random choices of an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """What one concept samples for one step, on the CPU: eq. (2) of Gal et al. 2022 is an expectation over these."""

    latents: Tensor
    """int64 (B,): index into the cached latents (image, crop and flip)."""
    prompts: Tensor
    """int64 (B,): index into the tokenized prompts."""
    levels: Tensor
    """float64 (B,), uniform in [0, 1): the noise levels, as `Backbone.levels` takes them."""
    noise: Tensor
    """float32 (2, B, C, h, w), standard normal: to sample the VAE's posterior, and eps of the forward process."""
