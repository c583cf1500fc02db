"""The stopping rules as functions of a series of evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from tests.support import tiny
from tests.support.learning import dvar
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig
from textinv_ray.inversion import stopping


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan, math.inf]), max_size=12),
    st.sampled_from([(), (7, 11)]),
)
def test_the_best_evaluation(scores: list[float], added_at: tuple[int, ...]) -> None:
    section = StoppingConfig.model_validate({"rule": "clip", "clip": {"every": 3}})
    found = stopping.best_step(np.array(scores), tiny.concept(vectors_added_at=added_at), section)
    counted = {3 * n: score for n, score in enumerate(scores) if 3 * n >= max(0, *added_at, 0)}
    counted = {step: score for step, score in counted.items() if math.isfinite(score)}
    assert found == next((step for step, one in counted.items() if one == max(counted.values())), None)
    assert stopping.best_step(np.array(scores), tiny.concept(), dvar().stopping) is None


losses = st.lists(st.floats(0.001, 100), min_size=0, max_size=40)


@settings(deadline=None)
@given(losses, st.integers(2, 12))
def test_variance_ratios(values: list[float], window: int) -> None:
    ratios = stopping.variance_ratios(np.array(values), window)
    assert len(ratios) == len(values)
    for last, ratio in enumerate(ratios):
        seen = np.array(values[: last + 1])
        if len(seen) < window or (np.ptp(seen) == 0):
            assert math.isnan(ratio)
        elif np.ptp(seen) > 1e-3:
            assert ratio == pytest.approx(np.var(seen[-window:]) / np.var(seen), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=20))
def test_evaluations_since_the_best(scores: list[int]) -> None:
    found = stopping.evaluations_since_best(np.array(scores, dtype=float))
    assert found.tolist() == [n - scores.index(max(scores[: n + 1])) for n in range(len(scores))]


evaluations = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([math.nan, math.inf])), max_size=30)


@settings(deadline=None)
@given(evaluations, st.sampled_from(["dvar", "clip"]), st.integers(0, 40), st.sampled_from([(), (15,)]))
@example([1, 0.5, *[0.4] * 20], "dvar", 0, ())
@example([1, 0.5, *[0.4] * 20], "dvar", 0, (15,))
@example([*[0.4] * 20], "clip", 0, (15,))
def test_what_comes_later_does_not_change_the_end(
    values: list[float], rule: str, min_steps: int, added_at: tuple[int, ...]
) -> None:
    """So the rule can be applied again to a saved series. And no rule ends learning before it may."""
    config = StoppingConfig.model_validate(
        {
            "rule": rule,
            "min_steps": min_steps,
            "dvar": {"every": 3, "window": 3, "threshold": 0.6},
            "clip": {"every": 3, "patience": 2},
        }
    )
    concept = tiny.concept(vectors_added_at=added_at)
    end = stopping.stopping_step(np.array(values, dtype=float), concept, config)
    for seen in range(len(values) + 1):
        found = stopping.stopping_step(np.array(values[:seen], dtype=float), concept, config)
        assert found == (end if end is not None and seen > end // 3 else None)
    if end is not None:
        assert end >= max(min_steps, *added_at, 0)
        assert math.isfinite(values[end // 3])


def test_words_that_are_not_complete_end_nothing() -> None:
    """The best word has one vector less, and can't be chosen; the complete ones get better and better."""
    config = StoppingConfig.model_validate({"rule": "clip", "clip": {"every": 100, "patience": 2}})
    concept, scores = tiny.concept(vectors_added_at=(200,)), [math.nan, 0.8, 0.6, 0.65, 0.7]
    assert stopping.stopping_step(np.array(scores), concept, config) is None
    assert stopping.stopping_step(np.array([*scores, 0.69, 0.68]), concept, config) == 600


def test_a_loss_that_settles_and_one_that_does_not() -> None:
    config = dvar(min_steps=0, every=10, window=5, threshold=0.1).stopping
    steps = np.arange(60)
    settling, wandering = np.exp(-steps / 5), np.sin(steps)
    end = stopping.stopping_step(settling, tiny.concept(), config)
    assert end is not None
    assert 80 <= end <= 150
    assert stopping.stopping_step(wandering, tiny.concept(), config) is None
    assert stopping.stopping_step(np.full(60, 0.3), tiny.concept(), config) is None


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"scoring": {"num_images": 9}}, True),
        ({"stopping": {"clip": {"num_images": 9}}}, False),
        ({"stopping": {"clip": {"every": 9}}}, False),
        ({"stopping": {"clip": {"num_inference_steps": 9}}}, False),
        ({"stopping": {"clip": {"num_inference_steps": 20}}}, True),  # those of review
        ({"scoring": {"model": "another"}}, False),
        ({"review": {"guidance_scale": 2}}, False),
        ({"review": {"resolution": 256}}, False),
        ({"scoring": {"image_prompt": {"object": "{}"}}}, False),
        ({"scoring": {"image_prompt": {"style": "{}"}}}, True),
        ({"stopping": {"min_steps": 200}}, False),  # the first evaluation
        ({"review": {"images_per_prompt": 9}, "stopping": {"clip": {"patience": 9}}}, True),
    ],
)
def test_what_the_evaluation_of_clip_similarity_depends_on(
    other: dict[str, dict[str, JsonValue]], same: bool
) -> None:
    base: dict[str, dict[str, JsonValue]] = {"stopping": {"rule": "clip"}}
    merged = {**base, **other, "stopping": {**base["stopping"], **other.get("stopping", {})}}
    one, two = (
        stopping.evaluation_digest(tiny.concept(), JobConfig.from_dict(data)) for data in (base, merged)
    )
    assert (one == two) == same
