from __future__ import annotations

import numpy as np
import pytest

from textinv_ray.concepts import ridge


def samples(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, 12) and targets (count, 5) that are a linear map of them, an offset, and noise."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 12))
    return x, x @ rng.normal(size=(12, 5)) + 3 + noise * rng.normal(size=(count, 5))


def test_it_minimises_squared_errors_and_squared_weights() -> None:
    """Against the normal equations of its own penalty."""
    x, y = samples(40, 2.0)
    found = ridge.fit(x, y)
    assert found.penalty in ridge.PENALTIES
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    np.testing.assert_allclose(
        found.weights, np.linalg.solve(a.T @ a + found.penalty * np.eye(12), a.T @ b), atol=1e-10
    )
    np.testing.assert_allclose(x.mean(axis=0) @ found.weights + found.bias, y.mean(axis=0), atol=1e-10)


def test_the_penalty_grows_with_the_noise() -> None:
    penalties = [ridge.fit(*samples(40, noise)).penalty for noise in (0.0, 3.0, 100.0)]
    assert penalties[0] == ridge.PENALTIES[0]
    assert penalties == sorted(penalties)
    assert penalties[2] == ridge.PENALTIES[-1]


def test_r2_is_that_of_samples_that_were_left_out() -> None:
    assert ridge.fit(*samples(40, 0.0)).r2 > 0.999
    assert ridge.fit(*samples(40, 100.0)).r2 < 0.2
    x, y = samples(4000, 3.0)
    found = ridge.fit(x[:40], y[:40])
    errors = np.square(y[40:] - (x[40:] @ found.weights + found.bias)).sum()
    assert found.r2 == pytest.approx(1 - errors / np.square(y[40:] - y[:40].mean(axis=0)).sum(), abs=0.1)


@pytest.mark.parametrize("count", [2, 5, 30])
def test_twice_is_equal_to_the_bit(count: int) -> None:
    """Also with fewer samples than features, and than folds."""
    first, second = (ridge.fit(*samples(count, 1.0)) for _ in range(2))
    assert first.weights.tobytes() == second.weights.tobytes()
    assert (first.penalty, first.r2) == (second.penalty, second.r2)


def test_equal_targets() -> None:
    found = ridge.fit(samples(9, 0)[0], np.ones((9, 2)))
    np.testing.assert_allclose(found.weights, 0, atol=1e-12)
    np.testing.assert_allclose(found.bias, 1)
    assert found.r2 == 0
