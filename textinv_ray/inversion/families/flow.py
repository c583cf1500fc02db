"""What models of flow matching have in common: a transformer that predicts the velocity of a rectified flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    SchedulerMixin,
)
from torch import Tensor

from textinv_ray.config.training import TrainingConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.util.errors import UserError

TIMESTEPS = 1000
"""Timesteps are levels times this, in all published models."""


class FlowBackbone(Backbone):
    """A backbone with the straight paths of Liu et al. 2023 (rectified flow) and Lipman et al. 2023 (flow matching)."""

    transformer: ModelMixin
    scheduler: SchedulerMixin
    """As the model's folder has it: samplers and the shift of noise levels come from its configuration."""

    @property
    def denoiser(self) -> ModelMixin:
        """The transformer."""
        return self.transformer

    @property
    def patch(self) -> int:
        """Latents along a side of what is a token of the transformer."""
        return int(self.denoiser.config.patch_size)

    def shift(self, size: tuple[int, int]) -> float:
        """What the scheduler says; with `use_dynamic_shifting`, exp(mu) with mu linear in the number of tokens."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return float(config.get("flow_shift") or config.get("shift") or 1.0)
        tokens = (size[0] // self.patch) * (size[1] // self.patch)
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return math.exp(low + (high - low) * (tokens - least) / (most - least))

    def as_levels(self, levels: Tensor) -> Tensor:
        """Levels s in [0, 1], in `word_dtype`."""
        return levels.to(self.word_dtype)

    def loss_weights(self, levels: Tensor, training: TrainingConfig) -> Tensor | None:
        """None: the distribution of levels does what weights do elsewhere."""
        if training.loss_weight != "none":
            raise UserError(f"training.loss_weight: {self.family.name} has none")
        return None

    def corrupt(self, latents: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """z = (1 - s) x + s e, and the velocity e - x: Esser et al. 2024, eq. (13)."""
        s = levels.to(latents.dtype)[:, None, None, None]
        return (1 - s) * latents + s * noise, noise - latents

    def sampler(self, name: str) -> SchedulerMixin:
        """The scheduler of a value of `review.sampler`, with the model's shift. Raises UserError for one it hasn't."""
        if name not in self.family.samplers:
            raise UserError(f"review.sampler: {self.family.name} has no {name!r}")
        config: dict[str, Any] = {**self.scheduler.config}
        # With dynamic shifting the pipeline gives the shift
        shift = 1.0 if config.get("use_dynamic_shifting") else self.shift((0, 0))
        if name == "euler":
            return FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift)
        return DPMSolverMultistepScheduler.from_config(
            config, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
        )


def timesteps_of(levels: Tensor) -> Tensor:
    """Levels as timesteps: float32 (B,)."""
    return levels.to(torch.float32) * TIMESTEPS
