"""Ridge regression in closed form (Hoerl and Kennard 1970), its penalty chosen by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-4, 7))
"""0.01 to 1000 in half decades."""
FOLDS = 10
_SEED = 0  # of the division into folds


@dataclass(frozen=True, eq=False)
class Ridge:
    """y = x W + b."""

    weights: np.ndarray
    """float64 (d, m)."""
    bias: np.ndarray
    """float64 (m,)."""
    penalty: float
    """Weight of the squared weights beside the sum of squared errors."""
    r2: float
    """1 - (squared error) / (that of the mean), over the samples of all folds, each predicted from the others."""


def fit(x: np.ndarray, y: np.ndarray) -> Ridge:
    """The map from features to targets with the penalty of PENALTIES that predicts best.

    x: (n, d), y: (n, m) of n > 1 samples. The same arguments give the same map to the bit.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    folds = np.random.default_rng(_SEED).permutation(len(x)) % min(FOLDS, len(x))
    errors, total = np.zeros(len(PENALTIES)), 0.0
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        solved = _Solver(x[~held], y[~held])
        total += float(np.square(y[held] - solved.y_mean).sum())
        for index, penalty in enumerate(PENALTIES):
            weights, bias = solved.solution(penalty)
            errors[index] += np.square(y[held] - (x[held] @ weights + bias)).sum()
    best = int(len(PENALTIES) - 1 - errors[::-1].argmin())  # of equal ones the largest
    weights, bias = _Solver(x, y).solution(PENALTIES[best])
    return Ridge(weights, bias, PENALTIES[best], 1 - float(errors[best]) / total if total else 0.0)


class _Solver:
    """The singular value decomposition of centred features, from which the solution of any penalty follows."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x_mean, self.y_mean = x.mean(axis=0), y.mean(axis=0)
        left, self._values, self._right = np.linalg.svd(x - self.x_mean, full_matrices=False)
        self._projected = left.T @ (y - self.y_mean)

    def solution(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights (d, m) and bias (m,)."""
        shrunk = self._values / (np.square(self._values) + penalty)
        weights = self._right.T @ (shrunk[:, None] * self._projected)
        return weights, self.y_mean - self.x_mean @ weights
