"""Words between two words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.concepts.interpolation import between

shares = st.floats(0, 1)
seeds = st.integers(0, 10_000)


def word(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed)
    sizes = {"clip_l": 5, "clip_g": 8}
    return {name: (scale * drawn.normal(size=(2, d))).astype(np.float32) for name, d in sizes.items()}


@given(seeds, seeds, shares)
def test_angles_and_norms_are_shared_out(a: int, b: int, share: float) -> None:
    start, end = word(a), word(b, 3.0)
    mixed = between(start, end, share)
    for name, vectors in mixed.items():
        assert vectors.dtype == np.float32
        norms = [np.linalg.norm(part[name], axis=1) for part in (start, end)]
        np.testing.assert_allclose(
            np.linalg.norm(vectors, axis=1), (1 - share) * norms[0] + share * norms[1], rtol=1e-4
        )
        whole, part = (_angle(start[name], other) for other in (end[name], vectors))
        np.testing.assert_allclose(part, share * whole, atol=2e-3)


@given(seeds, seeds, shares)
def test_the_way_back_is_the_same_way(a: int, b: int, share: float) -> None:
    start, end = word(a), word(b)
    there, back = between(start, end, share), between(end, start, 1 - share)
    for name in there:
        np.testing.assert_allclose(there[name], back[name], atol=1e-4)


def test_ends_are_returned_to_the_bit() -> None:
    start, end = word(1), word(2)
    for share, expected in ((0, start), (1, end)):
        found = between(start, end, share)
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_the_same_direction_opposite_ones_and_zeros() -> None:
    start = {"clip_l": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], np.float32)}
    end = {"clip_l": np.array([[3.0, 0.0], [-1.0, 0.0], [2.0, 0.0]], np.float32)}
    assert between(start, end, 0.25)["clip_l"].tolist() == [[1.5, 0], [0.5, 0], [0.5, 0]]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_outside_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        between(word(1), word(2), share)


def test_words_of_other_sizes_are_refused() -> None:
    other = {"clip_l": np.ones((1, 5), np.float32)}
    with pytest.raises(ValueError, match=r"clip_l 2 x 5, clip_g 2 x 8 and clip_l 1 x 5"):
        between(word(1), other, 0.5)


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.arccos(((a * b).sum(axis=1) / lengths).clip(-1, 1))
