"""The UNet through `torch.compile`, for packs: one number of samples, and fewer are padded to it.

A compiled model is one for each shape, and each takes a minute or more; so slots that are free in a pack are filled
with zeros, which cost what samples cost and whose output nobody sees. Samples and scores, whose batches have other
sizes, and packs that have more samples (rows with a `batch_size` of their own) take the UNet as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F


class CompiledUNet:
    """Predicts as the UNet does, for up to `samples` samples. Compiles at the first call."""

    def __init__(
        self, unet: UNet2DConditionModel, samples: int, backend: str | Callable[..., object] = "inductor"
    ) -> None:
        self.samples = samples
        # Not `unet.compile()`, which would compile for every batch that is rendered, too
        self._predict = torch.compile(unet, dynamic=False, backend=backend)

    def __call__(self, noisy_latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        """(B, C, h, w), (B,) and (B, L, D) with B <= samples; returns (B, C, h, w)."""
        free = self.samples - len(timesteps)
        padded = self._predict(
            F.pad(noisy_latents, (0, 0) * 3 + (0, free)),
            F.pad(timesteps, (0, free)),
            F.pad(hidden_states, (0, 0) * 2 + (0, free)),
            return_dict=False,
        )[0]
        return padded[: len(timesteps)]
