"""Captions of other trainers: where the learned word goes in them, and Hugging Face's metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from textinv_ray.manifest import captions
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of {} at sea", ("a photo of {} at sea", True)),
        ("a photo of sks cat", ("a photo of {} cat", True)),
        ("SKS, sks", ("{}, {}", True)),
        ("<sks> at sea", ("{} at sea", True)),
        ("a photo of a cat", ("a photo of a {}", True)),
        ("a category", ("{}, a category", False)),
        ("asks for food", ("{}, asks for food", False)),
    ],
)
def test_where_the_word_goes(text: str, expected: tuple[str, bool]) -> None:
    assert captions.with_word(text, ["<sks>", "sks"], "cat") == expected


def test_metadata(tmp_path: Path) -> None:
    file = tmp_path / "metadata.jsonl"
    file.write_text(
        '{"file_name": "1.png", "text": "a {}"}\n\n{"file_name": "2.png", "caption": "b", "x": 3}\n'
    )
    assert captions.read_metadata(file) == {"1.png": "a {}", "2.png": "b"}


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"text": "a"}', '{"file_name": "1", "text": "\\ud800"}', "[" * 99_999]
)
def test_metadata_that_is_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "1.png"}}\n{line}\n')
    with pytest.raises(UserError, match=r'metadata.jsonl, line 2: expected {"file_name": "1.png", "text"'):
        captions.read_metadata(tmp_path / "metadata.jsonl")
