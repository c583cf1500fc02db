from __future__ import annotations

import numpy as np
import pytest

from textinv_ray.concepts import ridge
from textinv_ray.concepts.ridge import Ridge


def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, 12) and targets (count, 5) that are a linear map of them, an offset, and noise."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 12))
    return x, x @ rng.normal(size=(12, 5)) + 3 + 2 * rng.normal(size=(count, 5))


@pytest.mark.parametrize("penalty", [0.01, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_minimises_squared_errors_and_squared_weights(penalty: float, weighted: bool) -> None:
    """Against the normal equations."""
    x, y = samples(40)
    w = np.random.default_rng(2).uniform(0.1, 2, 40) if weighted else np.ones(40)
    w /= w.mean()
    weights, bias = Ridge(x, y, w if weighted else None).solution(penalty)
    a, b = x - (w @ x) / 40, y - (w @ y) / 40
    expected = np.linalg.solve(a.T @ (w[:, None] * a) + penalty * np.eye(12), a.T @ (w[:, None] * b))
    np.testing.assert_allclose(weights, expected, atol=1e-10)
    np.testing.assert_allclose((w @ x) / 40 @ weights + bias, (w @ y) / 40, atol=1e-10)


def test_a_weight_of_two_is_the_sample_twice() -> None:
    x, y = samples(9)
    w = np.ones(9)
    w[3] = 2
    twice = Ridge(np.concatenate([x, x[3:4]]), np.concatenate([y, y[3:4]])).solution(1.0)
    for found, expected in zip(Ridge(x, y, w).solution(1.0), twice, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("count", [2, 5, 30])
def test_twice_is_equal_to_the_bit(count: int) -> None:
    """Also with fewer samples than features."""
    first, second = (Ridge(*samples(count)).solution(1.0) for _ in range(2))
    assert [part.tobytes() for part in first] == [part.tobytes() for part in second]


@pytest.mark.parametrize("count", [2, 7, 25])
def test_each_sample_is_held_out_once(count: int) -> None:
    found = list(ridge.folds(count))
    assert len(found) == min(count, ridge.FOLDS)
    assert (np.sum(found, axis=0) == 1).all()
    assert [fold.tobytes() for fold in ridge.folds(count)] == [fold.tobytes() for fold in found]
