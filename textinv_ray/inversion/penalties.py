"""Penalty terms of the loss, as gradients in closed form, and the projection onto the vocabulary's mean norm.

They keep learned vectors near the vocabulary of each text encoder. All act on each vector alone, so a pack applies
them to the vectors of all its concepts at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EncoderNorms = Sequence[tuple[slice, float]]
"""Of each text encoder: its columns of a word's rows, and its vocabulary's mean norm."""


def regularization_gradient(vectors: Tensor, initial: Tensor, weight: Tensor) -> Tensor:
    """Gradient by v of weight ||v - v0||^2 (Gal et al. 2022, section 5.2, "Regularization"): 2 weight (v - v0).

    vectors (v), initial (v0): (R, D). weight: (R, 1), 0 for no penalty. Returns (R, D).
    """
    return 2 * weight * (vectors - initial)


def norm_gradient(vectors: Tensor, norms: EncoderNorms, weight: Tensor) -> Tensor:
    """Gradient by v of weight (||v|| - norm)^2: 2 weight (||v|| - norm) v / ||v||; 0 where v = 0.

    vectors (v): (R, D). norms: the target for the part of each encoder. weight: (R, 1), 0 for no penalty.
    Returns (R, D).
    """
    parts = []
    for columns, norm in norms:
        part = vectors[:, columns]
        lengths = part.norm(dim=1, keepdim=True)
        parts.append(2 * weight * (lengths - norm) * part / lengths.clamp(min=1e-12))
    return torch.cat(parts, dim=1)


def rescaled(vectors: Tensor, which: Tensor, norms: EncoderNorms) -> Tensor:
    """The vectors (R, D), each encoder's part rescaled to its norm where `which` (R, 1) isn't 0."""
    parts = []
    for columns, norm in norms:
        part = vectors[:, columns]
        factors = which * norm / part.norm(dim=1, keepdim=True).clamp(min=1e-12)
        parts.append(torch.where(which > 0, factors * part, part))
    return torch.cat(parts, dim=1)
