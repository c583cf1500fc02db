"""The history of a concept: what it keeps, forgets and refuses."""

from __future__ import annotations

import math

import pytest

from tests.support import examples
from textinv_ray.service.store.history import History


def test_round_trip() -> None:
    history = examples.history("a", steps=5)
    assert History.from_bytes(history.to_bytes()) == history


def test_seconds_add_up() -> None:
    history = History("s", "r")
    history.at(0, 2.0)
    history.at(0, 1.0)
    history.at(1, 0.5)
    assert [point.seconds for point in history.points] == [3.0, 3.5]
    assert history.seconds == 3.5


def test_reviews_are_part_of_the_seconds() -> None:
    history = History("state", "review")
    history.at(0)
    history.add_review(1.0)
    history.at(1, 2.0)
    history.add_review(0.5)
    history.add_stopping(0.25)
    history.at(2)
    assert (history.seconds, history.review_seconds, history.stopping_seconds) == (3.75, 1.5, 0.25)
    assert [point.review_seconds for point in history.points] == [1.0, 1.5, 1.5]
    assert [point.stopping_seconds for point in history.points] == [0.0, 0.25, 0.25]


def test_no_way_back() -> None:
    history = examples.history("a", steps=5)
    with pytest.raises(ValueError, match="at step 5, not 3"):
        history.at(3)


def test_cut_forgets_what_the_state_doesnt_know() -> None:
    history = examples.history("a", steps=5)
    history.cut(3)
    assert [point.step for point in history.points] == [0, 1, 2, 3]
    assert history.at(4).step == 4


def test_losses_that_are_not_finite_stay_out() -> None:
    history = examples.history("a", steps=3)
    for point in history.points:
        point.loss = None
    history.set_losses([1.0, math.nan, math.inf])
    assert [point.loss for point in history.points] == [None, 1.0, None, None]


def test_forget_reviews_keeps_losses() -> None:
    history = examples.history("a")
    history.forget_reviews()
    assert not any(point.sampled or point.clip_image_similarity for point in history.points)
    assert [point.loss for point in history.points] == [None, 1.0, 0.5]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all"])
def test_foreign_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a history"):
        History.from_bytes(data)


def test_any_byte_may_be_damaged() -> None:
    """Whatever Arrow makes of it, what is read is a history or ValueError."""
    data = examples.history("a", steps=20).to_bytes()
    refused = 0
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        try:
            points = History.from_bytes(bytes(changed)).points
        except ValueError:
            refused += 1
            continue
        steps = [point.step for point in points]
        assert steps == sorted(set(steps))
        assert all(math.isfinite(point.seconds) for point in points)
    assert refused > len(data) // 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", 1),
        ("step", -5),
        ("seconds", math.nan),
        ("time_ms", 2**60),
        ("time_ms", -1),
        ("loss", math.inf),
    ],
)
def test_points_that_cannot_be(name: str, value: float) -> None:
    history = examples.history("a", steps=2)
    setattr(history.points[2], name, value)
    with pytest.raises(ValueError, match="its point after step 1 is damaged"):
        History.from_bytes(history.to_bytes())
