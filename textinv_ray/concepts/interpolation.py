"""Words between two words, by spherical linear interpolation.

A word between its initializer and what was learned edits better and resembles less: a dial that costs no learning.
"""

from __future__ import annotations

import numpy as np

from textinv_ray.concepts.word_files import Word

_PARALLEL = 1e-6
"""Below this sine, directions are the same or opposite."""


def between(start: Word, end: Word, share: float) -> dict[str, np.ndarray]:
    """The word at `share` in [0, 1] of the way from `start` (0) to `end` (1), for each text encoder and vector.

    Directions are interpolated along the great circle (Shoemake 1985), norms linearly. Where there is no great circle,
    because a vector is zero or both are opposite, vectors are interpolated linearly. Returns float32 (V, D) by encoder;
    the ends are returned as they are. Raises ValueError when the words don't have the same encoders and shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"{share} is not between 0 and 1")
    shapes = [{name: vectors.shape for name, vectors in word.items()} for word in (start, end)]
    if shapes[0] != shapes[1]:
        texts = [", ".join(f"{name} {v} x {d}" for name, (v, d) in shape.items()) for shape in shapes]
        raise ValueError(f"words of other sizes can't be mixed: {texts[0]} and {texts[1]}")
    if share in (0, 1):
        return dict(end if share else start)
    return {name: _slerp(start[name], end[name], share) for name in start}


def _slerp(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    a, b = start.astype(np.float64), end.astype(np.float64)
    norms = [np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (a, b)]
    directions = [vectors / np.maximum(norm, 1e-30) for vectors, norm in zip((a, b), norms, strict=True)]
    angle = np.arccos((directions[0] * directions[1]).sum(axis=1, keepdims=True).clip(-1, 1))
    sine = np.sin(angle)
    curved = (sine > _PARALLEL) & (norms[0] > 0) & (norms[1] > 0)
    divisor = np.where(curved, sine, 1)
    direction = (
        np.sin((1 - share) * angle) * directions[0] + np.sin(share * angle) * directions[1]
    ) / divisor
    norm = (1 - share) * norms[0] + share * norms[1]
    return np.where(curved, norm * direction, (1 - share) * a + share * b).astype(np.float32)
