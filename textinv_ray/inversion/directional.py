"""Directional textual inversion: words move on a sphere whose radius is the vocabulary's mean norm.

Kim et al. 2025, "Directional Textual Inversion" (arXiv 2512.13672): in pre-norm text encoders a vector's direction
carries its meaning, and a norm above the vocabulary's weakens the rest of the prompt. A word is m v with m fixed and
|v| = 1; each step is Riemannian gradient descent in v with a gradient of length 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from textinv_ray.inversion.penalties import EncoderNorms

_ROUNDING = 1e-6
"""A tangent shorter than this share of its gradient is the rounding error of the projection: there is no step."""


class Rows(NamedTuple):
    """The vectors of a pack that take directional steps."""

    which: Tensor
    """bool (R, 1)."""
    prior: Tensor
    """(R, 1), read where `which`."""


def step(
    vectors: Tensor, gradient: Tensor, initial: Tensor, *, rate: Tensor, prior: Tensor, norms: EncoderNorms
) -> Tensor:
    """One step of each vector, for the part of each text encoder by itself. Returns new vectors (R, D).

    With m the norm, v = vector / m, mu = initial / |initial| and g = m gradient - prior mu (the second term is the
    gradient of the prior's -prior <mu, v>, of a von Mises-Fisher distribution around the initial direction):
    g <- g - <g, v> v; v <- normalised(v - rate g / |g|). So the angle of each step is atan(rate), in radians.

    vectors, gradient, initial: (R, D). rate, prior: (R, 1). norms: as in `penalties`; all R vectors keep these.
    """
    parts = []
    for columns, norm in norms:
        direction = torch.nn.functional.normalize(vectors[:, columns], dim=1)
        towards = torch.nn.functional.normalize(initial[:, columns], dim=1)
        whole = norm * gradient[:, columns] - prior * towards
        tangent = whole - (whole * direction).sum(dim=1, keepdim=True) * direction
        length = tangent.norm(dim=1, keepdim=True)
        moves = length > _ROUNDING * whole.norm(dim=1, keepdim=True)
        moved = direction - torch.where(moves, rate * tangent / length.clamp(min=1e-30), 0)
        parts.append(norm * torch.nn.functional.normalize(moved, dim=1))
    return torch.cat(parts, dim=1)
