"""What keeps words where the vocabulary's are: terms of the loss by their gradients, and the norm's projection.

All are per vector, so a pack computes them for the words of all its concepts at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def regularization_gradient(vectors: Tensor, initial: Tensor, weight: Tensor) -> Tensor:
    """Of weight ||v - v0||^2 by v, Gal et al. 2022, "Regularization": 2 weight (v - v0).

    vectors, initial: (R, D); weight: (R, 1), 0 for none. Returns (R, D).
    """
    return 2 * weight * (vectors - initial)


def norm_gradient(vectors: Tensor, norm: float, weight: Tensor) -> Tensor:
    """Of weight (||v|| - norm)^2 by v: 2 weight (||v|| - norm) v / ||v||; 0 where v is 0.

    vectors: (R, D); norm: the vocabulary's mean; weight: (R, 1), 0 for none. Returns (R, D).
    """
    lengths = vectors.norm(dim=1, keepdim=True)
    return 2 * weight * (lengths - norm) * vectors / lengths.clamp(min=1e-12)


def rescaled(vectors: Tensor, norms: Tensor) -> Tensor:
    """The vectors (R, D) in their own directions, at the norms (R, 1) given; where that is 0, as they are."""
    factors = norms / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.where(norms > 0, factors * vectors, vectors)
