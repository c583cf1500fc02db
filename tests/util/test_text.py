"""Text for people."""

from __future__ import annotations

import pytest

from textinv_ray.util.text import duration, nearest


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (5400, "1 h 30 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_nearest_known_name() -> None:
    assert nearest("step", ["seed", "steps", "captions"]) == "; did you mean 'steps'?"
    assert nearest("zzz", ["seed", "steps"]) == ""
    assert nearest("steps", []) == ""
