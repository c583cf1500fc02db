"""Noise levels of training: quantiles of a distribution, a shift, and weights of the loss by signal-to-noise ratio.

A level t in [0, 1] is a function of a uniform number, so that levels are drawn from a concept's seed like all else.
Distributions and the shift are those of Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution
Image Synthesis".
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from textinv_ray.config.training import TimestepsConfig, TrainingConfig

Distribution = Literal["uniform", "logit_normal", "mode"]


def drawn(uniform: Tensor, timesteps: TimestepsConfig, distribution: Distribution, shift: float) -> Tensor:
    """Levels of uniform numbers in [0, 1): (B,) -> (B,) in [0, 1].

    distribution, shift: the model's own, where `timesteps` says `auto`.
    """
    chosen = distribution if timesteps.distribution == "auto" else timesteps.distribution
    levels = quantile(uniform, chosen, timesteps)
    levels = shifted(levels, shift if timesteps.shift == "auto" else timesteps.shift)
    lowest, highest = timesteps.min, timesteps.max
    return levels if (lowest, highest) == (0, 1) else lowest + (highest - lowest) * levels


def quantile(uniform: Tensor, distribution: Distribution, timesteps: TimestepsConfig) -> Tensor:
    """The distribution's values at uniform numbers in [0, 1): section 3.1, "Tailored SNR Samplers"."""
    if distribution == "logit_normal":
        normal = torch.special.ndtri(uniform)
        return torch.sigmoid(timesteps.logit_mean + timesteps.logit_std * normal)
    if distribution == "mode":
        cosine = torch.cos(math.pi / 2 * uniform) ** 2
        return 1 - uniform - timesteps.mode_scale * (cosine - 1 + uniform)
    return uniform


def shifted(levels: Tensor, shift: float) -> Tensor:
    """a t / (1 + (a - 1) t): section 5.3.2. shift (a): 1 changes nothing."""
    return levels if shift == 1 else shift * levels / (1 + (shift - 1) * levels)


def snr_weights(snr: Tensor, training: TrainingConfig, *, predicts_v: bool) -> Tensor | None:
    """Weights of the samples' losses by signal-to-noise ratio: (B,) -> (B,); None: all are 1.

    min(SNR, gamma) / SNR: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy".
    1 / sqrt(SNR): Yu et al. 2024, "Unmasking Bias in Diffusion Model Training". Both are weights of the epsilon loss.
    With z_t = alpha x + sigma e, an error of v is one of alpha times that in epsilon; alpha^2 is SNR / (SNR + 1).
    """
    if training.loss_weight == "none":
        return None
    to_epsilon = snr / (snr + 1) if predicts_v else torch.ones_like(snr)
    snr = snr.clamp(min=1e-8)  # zero terminal SNR
    if training.loss_weight == "min_snr":
        return to_epsilon * snr.clamp(max=training.min_snr_gamma) / snr
    return to_epsilon / snr.sqrt()
