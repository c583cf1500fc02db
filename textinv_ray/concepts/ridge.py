"""Ridge regression in closed form (Hoerl and Kennard 1970), with weights of the samples, and the folds that choose."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-4, 7))
"""0.01 to 1000 in half decades."""
FOLDS = 10
_SEED = 0  # of the division into folds


def folds(count: int) -> Iterator[np.ndarray]:
    """Which of `count` samples are held out, bool (count,), for each fold: the same in all calls."""
    numbers = np.random.default_rng(_SEED).permutation(count) % min(FOLDS, count)
    yield from (numbers == fold for fold in range(int(numbers.max(initial=-1)) + 1))


class Ridge:
    """y = x W + b for any penalty, by one singular value decomposition of the centred features."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> None:
        """x: (n, d), y: (n, m) of n > 1 samples. weights: (n,) of mean 1, of the samples' squared errors; None: 1."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        weights = np.ones(len(x)) if weights is None else weights
        self._x_mean, self._y_mean = (np.average(part, axis=0, weights=weights) for part in (x, y))
        root = np.sqrt(weights)[:, None]
        left, self._values, self._right = np.linalg.svd(root * (x - self._x_mean), full_matrices=False)
        self._projected = left.T @ (root * (y - self._y_mean))

    def solution(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """W (d, m) and b (m,). penalty: weight of the squared W beside the sum of squared errors."""
        shrunk = self._values / (np.square(self._values) + penalty)
        weights = self._right.T @ (shrunk[:, None] * self._projected)
        return weights, self._y_mean - self._x_mean @ weights
