"""Text for people."""

from __future__ import annotations

import pytest

from textinv_ray.util.text import duration, nearest, one_line, printable


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


def test_texts_of_others_stay_on_their_line() -> None:
    assert one_line("cat\x1b[31m\nred\u202e \ud800") == "cat\\x1b[31m\\nred\\u202e \\ud800"
    assert one_line("кошка 猫 'é' <x>") == "кошка 猫 'é' <x>"
    shown = one_line("a" * 300_000 + "z")
    assert len(shown) == 2000
    assert one_line(shown) == shown
    assert shown.startswith("aaa")
    assert shown.endswith("z")
    assert printable("one\ntwo\x1b") == "one\ntwo\\x1b"
