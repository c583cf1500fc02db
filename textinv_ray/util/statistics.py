"""How sure a mean over concepts is, and whether two sets of scores differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
"""Bootstrap resamples, and random sign flips of a paired test."""
_LARGE = 1000  # values; with more, the normal approximation, to which the bootstrap converges
_EXACT = 10  # pairs up to which all 2^n sign flips are taken
_Z = 1.959964  # of a 95 % interval of the normal distribution


class Mean(NamedTuple):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    """NaN for a single value, which has no interval."""
    high: float
    values: int
    """How many, one per concept."""

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one value, with its 95 % percentile bootstrap interval over the values (Efron 1979).

    Resampled RESAMPLES times with a fixed seed, so the same values give the same interval; of more than 1000 values
    the normal approximation. Raises ValueError without a value.
    """
    given = np.asarray(values, np.float64)
    if not len(given):
        raise ValueError("no values")
    mean = float(given.mean())
    if len(given) == 1:
        return Mean(mean, math.nan, math.nan, 1)
    if len(given) > _LARGE:
        half = _Z * float(given.std(ddof=1)) / math.sqrt(len(given))
        return Mean(mean, mean - half, mean + half, len(given))
    picked = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
    low, high = np.percentile(given[picked].mean(axis=1), [2.5, 97.5])
    return Mean(mean, float(low), float(high), len(given))


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p value of a paired permutation test: the mean difference under random signs (Fisher 1935).

    All sign flips of up to 10 pairs, RESAMPLES random ones of more (with a fixed seed; the observed signs count as
    one of them). 1 when there is no difference at all. Raises ValueError without a pair.
    """
    given = np.asarray(differences, np.float64)
    if not len(given):
        raise ValueError("no pairs")
    if len(given) <= _EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(given))))
        extra = 0
    else:
        signs = np.random.default_rng(0).choice((1, -1), (RESAMPLES, len(given)))
        extra = 1
    sums, observed = np.abs(signs @ given), abs(float(given.sum()))
    # Rounding must not make a flip of all signs smaller than the observed sum
    as_large = int((sums >= observed * (1 - 1e-12) - 1e-15).sum())
    return (as_large + extra) / (len(signs) + extra)
