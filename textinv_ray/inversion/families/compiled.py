"""The denoiser through `torch.compile`, for the steps of packs, at one fixed number of samples.

torch.compile compiles once per shape, which takes a minute or more. So smaller batches are padded with zeros to the
fixed number; the padding costs as much time as samples do. Rendering, whose batches have other sizes, and packs with
more samples (rows with a `batch_size` of their own) use the denoiser without compilation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textinv_ray.inversion.families.condition import Condition

Denoise = Callable[[Callable[..., tuple[Tensor, ...]], Tensor, Tensor, Condition], Tensor]
"""(the model, noisy latents, timesteps, condition) -> prediction, as a family calls its model."""


class CompiledDenoiser:
    """Computes what the denoiser computes, for up to `samples` samples. The first call compiles."""

    def __init__(
        self, model: nn.Module, samples: int, backend: str | Callable[..., object] = "inductor"
    ) -> None:
        self.samples = samples
        # `model.compile()` would also compile for every batch size of rendering
        self._model = torch.compile(model, dynamic=False, backend=backend)

    def __call__(
        self, denoise: Denoise, noisy_latents: Tensor, timesteps: Tensor, condition: Condition
    ) -> Tensor:
        """The model's prediction: (B, C, h, w), (B,), a condition of B prompts with B <= samples -> (B, C, h, w)."""
        free = self.samples - len(timesteps)

        def padded(tensor: Tensor) -> Tensor:
            return F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, free))

        prediction = denoise(self._model, padded(noisy_latents), padded(timesteps), condition.map(padded))
        return prediction[: len(timesteps)]
