"""The random choices of one optimisation step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """The random choices of one step of one concept, on the CPU."""

    latents: Tensor
    """int64 (B,): which of the cached latents (image, crop and flip)."""
    prompts: Tensor
    """int64 (B,): which of the tokenised prompts."""
    timesteps: Tensor
    """int64 (B,), in [0, number of training timesteps)."""
    noise: Tensor
    """float32 (2, B, C, h, w), standard normal: for the latents' posterior, and for the forward process."""
