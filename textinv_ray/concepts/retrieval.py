"""Identity retrieval: whether a word's pictures are nearest to views of its own concept among those of all concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_CONCEPTS = 10
"""With fewer concepts in an output, retrieval says little and isn't computed."""
MAX_CONCEPTS = 20_000
"""With more it isn't computed either: the work grows with the square of their number."""
_TILE = 2048  # concepts whose views are compared at once


@dataclass(frozen=True, eq=False)
class Features:
    """What an encoder makes of one concept's pictures."""

    pictures: np.ndarray
    """float32 (n, d): samples of the image prompt with the learned word, of Euclidean length 1."""
    views: np.ndarray
    """float32 (d,): the mean over real images of the concept (held-out ones where there are any) of length 1 each."""

    @classmethod
    def of(cls, pictures: np.ndarray, views: np.ndarray) -> Features:
        """pictures: float32 (n, d), views: float32 (m, d), both of length 1."""
        return cls(pictures, views.mean(axis=0))


def retrieval_top1(concepts: Sequence[Features]) -> list[float]:
    """retrieval_top1 of each concept: the share in [0, 1] of its pictures that find it.

    A picture finds its concept when its mean cosine with that concept's views is larger than with any other's: the
    mean cosine with a concept is the dot product with `views`. A tie is a miss.
    """
    if not concepts:
        return []
    pictures = np.concatenate([concept.pictures for concept in concepts]).astype(np.float32)
    owner = np.repeat(np.arange(len(concepts)), [len(concept.pictures) for concept in concepts])
    views = np.stack([concept.views for concept in concepts]).astype(np.float32)
    own = np.einsum("nd,nd->n", pictures, views[owner])
    best_other = np.full(len(pictures), -np.inf, np.float32)
    for start in range(0, len(views), _TILE):
        cosines = pictures @ views[start : start + _TILE].T
        mine = np.flatnonzero((owner >= start) & (owner < start + _TILE))
        cosines[mine, owner[mine] - start] = -np.inf
        best_other = np.maximum(best_other, cosines.max(axis=1))
    counts = np.bincount(owner, minlength=len(views))
    hits = np.bincount(owner, weights=own > best_other, minlength=len(views))
    return [float(share) for share in hits / np.maximum(1, counts)]
