"""The table of an ablation: means over concepts, their intervals, and paired differences."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from textinv_ray.experiments import ablation_table
from textinv_ray.experiments.ablation_table import AXES, Score, interval, table


def known(found: tuple[float | None, float | None, float | None]) -> tuple[float, float, float]:
    mean, low, high = found
    assert mean is not None
    assert low is not None
    assert high is not None
    return mean, low, high


def test_the_interval_is_students() -> None:
    """Two values: half the width is 12.706 standard errors, from a table of the t distribution."""
    mean, low, high = known(interval([0.0, 2.0]))
    assert mean == 1
    assert high - mean == pytest.approx(12.706, abs=1e-3)
    assert mean - low == pytest.approx(high - mean)
    assert interval([3.0]) == (3.0, None, None)
    assert interval([]) == (None, None, None)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.3, 0.1, (2000, 5))
    inside = [low <= 0.3 <= high for _, low, high in (known(interval(values)) for values in draws.tolist())]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def scores(values: dict[tuple[str, str, str], float]) -> list[Score]:
    """(variant, concept, seed) -> reconstruction; editability is half of it."""
    return [
        Score("variant", variant, concept, seed, value, value / 2, 1.0)
        for (variant, concept, seed), value in values.items()
    ]


def test_concepts_are_the_sample() -> None:
    """Ten seeds of a concept count as one, because concepts are the sampling unit."""
    few = scores({("base", "a", "0"): 0.25, ("base", "b", "0"): 0.75})
    many = scores(
        {("base", "a", str(seed)): 0.25 + (seed - 4.5) / 100 for seed in range(10)}
        | {("base", "b", "0"): 0.75}
    )
    (one,), (other,) = table(few, "base").to_pylist(), table(many, "base").to_pylist()
    assert one["reconstruction"] == pytest.approx(0.5)
    for name in ("reconstruction", "reconstruction_low", "editability_high"):
        assert other[name] == pytest.approx(one[name])
    assert (one["runs"], other["runs"], one["concepts"]) == (2, 11, 2)


@settings(max_examples=50, deadline=None)
@given(
    levels=st.lists(st.floats(-1, 1), min_size=2, max_size=5),
    shift=st.floats(-0.5, 0.5),
    missing=st.booleans(),
)
def test_differences_are_of_the_same_runs(levels: list[float], shift: float, missing: bool) -> None:
    """A constant difference is found exactly, however much concepts differ, and also when a run is missing."""
    base = {("base", f"c{index}", "0"): level for index, level in enumerate(levels)}
    other = {("high", concept, seed): level + shift for (_, concept, seed), level in base.items()}
    if missing:
        del base["base", "c0", "0"]
    first, second = table(scores(base | other), "base").to_pylist()
    assert first["reconstruction_difference"] is None
    for axis, expected in zip(AXES, (shift, shift / 2), strict=True):
        assert second[f"{axis}_difference"] == pytest.approx(expected, abs=1e-9)
        if len(levels) - missing > 1:
            assert second[f"{axis}_difference_high"] == pytest.approx(expected, abs=1e-9)


def test_text_and_plot(tmp_path: Path) -> None:
    runs = {("base", "a", "0"): 0.25, ("base", "b", "0"): 0.75, ("auto", "a", "0"): 0.5}
    found = table([*scores(runs), Score("reference", "no word", "a", "", 0.1, 0.3)], "base")
    lines = ablation_table.text(found, "base").splitlines()
    assert lines[1].split() == ["base", "0.500", "±", "3.177", "0.250", "±", "1.588", "2", "2"]
    assert lines[2].split() == ["auto", "0.500", "0.250", "+0.250", "+0.125", "1", "1"]
    assert lines[3].split() == ["no", "word", "0.100", "0.300", "1", "1"]
    assert "judge" not in lines[0]
    ablation_table.plot(found, tmp_path / "plot.png")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "something was drawn"


def test_a_judge_and_words_between(tmp_path: Path) -> None:
    """Words between are compared with base by the same runs; the judge is an axis of its own, and a panel."""
    kinds: tuple[tuple[Literal["variant", "between"], str, float], ...] = (
        ("variant", "base", 0.0),
        ("variant", "auto", 0.02),
        ("between", "0.3", -0.1),
    )
    runs = [
        Score(kind, name, concept, "0", 0.5 + level + shift, 0.2 - shift, 1.0, judge=0.4 + level + 2 * shift)
        for kind, name, shift in kinds
        for concept, level in (("a", 0.0), ("b", 0.1))
    ]
    found = table([*runs, Score("reference", "no word", "a", "", 0.1, 0.3)], "base")
    auto, between = found.to_pylist()[1:3]
    assert auto["judge_difference"] == pytest.approx(0.04)
    assert between["kind"] == "between"
    assert between["judge"] == pytest.approx(0.25)
    assert between["judge_difference"] == pytest.approx(-0.2)
    assert between["reconstruction_difference"] == pytest.approx(-0.1)
    lines = ablation_table.text(found, "base").splitlines()
    assert lines[0].split()[:3] == ["reconstruction", "editability", "judge"]
    assert "-0.200" in lines[3]
    without = table([dataclasses.replace(run, judge=None) for run in runs], "base")
    sizes = []
    for number, one in enumerate((found, without)):
        ablation_table.plot(one, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as drawn:
            sizes.append(drawn.size[0])
    assert sizes[0] > 1.5 * sizes[1], "a panel for the judge"
