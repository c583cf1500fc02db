"""The UNet through `torch.compile`, for the steps of packs, at one fixed number of samples.

torch.compile compiles once per shape, which takes a minute or more. So smaller batches are padded with zeros to the
fixed number; the padding costs as much time as samples do. Rendering, whose batches have other sizes, and packs with
more samples (rows with a `batch_size` of their own) use the UNet without compilation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F


class CompiledUNet:
    """Computes what the UNet computes, for up to `samples` samples. The first call compiles."""

    def __init__(
        self, unet: UNet2DConditionModel, samples: int, backend: str | Callable[..., object] = "inductor"
    ) -> None:
        self.samples = samples
        # `unet.compile()` would also compile for every batch size of rendering
        self._predict = torch.compile(unet, dynamic=False, backend=backend)

    def __call__(self, noisy_latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        """The UNet's prediction: (B, C, h, w), int64 (B,), (B, L, D) with B <= samples -> (B, C, h, w)."""
        free = self.samples - len(timesteps)
        padded = self._predict(
            F.pad(noisy_latents, (0, 0) * 3 + (0, free)),
            F.pad(timesteps, (0, free)),
            F.pad(hidden_states, (0, 0) * 2 + (0, free)),
            return_dict=False,
        )[0]
        return padded[: len(timesteps)]
