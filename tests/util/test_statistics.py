from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from textinv_ray.util.statistics import mean_of, paired_p


def test_the_interval_is_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=40)
    found = mean_of(values.tolist())
    assert found.mean == pytest.approx(values.mean())
    own = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, random_state=2)
    low, high = own.confidence_interval
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.02)
    assert mean_of(values.tolist()) == found, "the same values give the same interval"


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(3)
    found = [mean_of(rng.normal(0.5, 0.1, 30).tolist()) for _ in range(200)]
    assert 175 <= sum(one.low <= 0.5 <= one.high for one in found) <= 199


def test_of_many_values_the_interval_goes_on_without_a_jump() -> None:
    values = np.random.default_rng(4).normal(size=1001).tolist()
    many, fewer = mean_of(values), mean_of(values[:1000])
    assert many.high - many.low == pytest.approx(fewer.high - fewer.low, rel=0.1)


def test_one_value_and_none() -> None:
    assert str(mean_of([0.25])) == "0.250"
    assert math.isnan(mean_of([0.25]).low)
    assert str(mean_of([0.5, 0.5])) == "0.500 [0.500, 0.500]"
    for function in (mean_of, paired_p):
        with pytest.raises(ValueError, match="no "):
            function([])


@pytest.mark.parametrize("count", [4, 9, 25])
def test_the_paired_test_is_scipys_permutation_test(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.4, 1, count)
    own = stats.permutation_test(
        (differences, np.zeros(count)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=20000,
        random_state=1,
    )
    assert paired_p(differences.tolist()) == pytest.approx(own.pvalue, abs=1e-9 if count <= 10 else 0.03)


def test_no_difference_and_a_plain_one() -> None:
    assert paired_p([0.0] * 20) == 1
    assert paired_p([0.0] * 3) == 1
    assert paired_p([0.1] * 8) == pytest.approx(2 / 256)
    assert paired_p([0.1] * 50) == pytest.approx(1 / 2001)
    assert paired_p([-0.1] * 8) == paired_p([0.1] * 8)
