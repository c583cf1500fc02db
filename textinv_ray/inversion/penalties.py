"""Penalty terms of the loss, as gradients in closed form, and the projection onto the vocabulary's mean norm.

They keep learned vectors near the vocabulary. All act on each vector alone, so a pack applies them to the vectors of
all its concepts at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def regularization_gradient(vectors: Tensor, initial: Tensor, weight: Tensor) -> Tensor:
    """Gradient by v of weight ||v - v0||^2 (Gal et al. 2022, section 5.2, "Regularization"): 2 weight (v - v0).

    vectors (v), initial (v0): (R, D). weight: (R, 1), 0 for no penalty. Returns (R, D).
    """
    return 2 * weight * (vectors - initial)


def norm_gradient(vectors: Tensor, norm: float, weight: Tensor) -> Tensor:
    """Gradient by v of weight (||v|| - norm)^2: 2 weight (||v|| - norm) v / ||v||; 0 where v = 0.

    vectors (v): (R, D). norm: the target, the vocabulary's mean norm. weight: (R, 1), 0 for no penalty.
    Returns (R, D).
    """
    lengths = vectors.norm(dim=1, keepdim=True)
    return 2 * weight * (lengths - norm) * vectors / lengths.clamp(min=1e-12)


def rescaled(vectors: Tensor, norms: Tensor) -> Tensor:
    """The vectors (R, D), rescaled to the norms (R, 1). Where the norm is 0 the vector is unchanged."""
    factors = norms / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.where(norms > 0, factors * vectors, vectors)
