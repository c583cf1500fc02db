"""`textinv words`: the words of an output, and those that are like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import examples
from tests.support.commands import textinv
from textinv_ray.service.store.store import Store


def test_the_command(similar_words: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("words", similar_words.uri) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "<dog>: norm 1.50; near cat, dog"
    assert lines[4] == "most alike (cosine of the means of their vectors):"
    assert lines[5] == "  0.999  <cat>  <kitten>"
    for like in ("<Cat>", "cat"):
        assert textinv("words", similar_words.uri, "--like", like, "-n", "1") == 0
        assert capsys.readouterr().out.splitlines() == [
            "<cat>: norm 1.00; near cat, dog",
            "  0.999  <kitten>",
        ]


def test_mistakes(similar_words: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("words", similar_words.uri, "--like", "<cart>") == 2
    assert "no learned word '<cart>'; did you mean '<cat>'?" in capsys.readouterr().err
    assert textinv("words", str(tmp_path / "none")) == 2
    assert "none has no learned words" in capsys.readouterr().err


def test_words_are_shown_on_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path))
    examples.finish(store, "cat", placeholder_token="<c\x1b[31m\nat>", nearest_words={"clip_l": ["a\x1bb"]})
    assert textinv("words", store.uri) == 0
    assert capsys.readouterr().out == "<c\\x1b[31m\\nat>: norm 1.00; near a\\x1bb\n"
