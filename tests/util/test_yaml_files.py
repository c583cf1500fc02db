"""YAML by its one reader: numbers as people write them, and limits that hold whoever wrote it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.util import yaml_files
from textinv_ray.util.errors import UserError

MULTIPLYING = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 5e-4", {"a": 0.0005}),
        ("a: 1e3", {"a": 1000.0}),
        ("", None),
        ("\ufeffa: 1", {"a": 1}),
        ('"\\ud83d\\ude00"', "😀"),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}", {"x": {"a": 1, "b": 2}, "y": {"a": 3, "b": 2}}),
        ('- "{} on a beach"', ["{} on a beach"]),
    ],
)
def test_what_is_read(text: str, value: object) -> None:
    assert yaml_files.parse(text, "x.yaml") == value
    assert yaml_files.parse(text.encode(), "x.yaml") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts:\n  - {} on a beach\n", 'x.yaml is not valid YAML: line 2: .*; quote it: "{} on a beach"'),
        ("prompts: [{} on a beach, b]", 'quote it: "{} on a beach"'),
        ("a: @x", "quote a text that begins with one of"),
        ("a: b: c", "quote a text that begins with one of"),
        (MULTIPLYING, "aliases make more than 1000000 values of it"),
        ("&a [*a]", "an alias stands within what it stands for"),
        ("&a {b: {c: *a}}", "an alias stands within what it stands for"),
        ("[" * 100_000, "lists and mappings lie more than 32 deep"),
        ("{a: " * 5000, "lists and mappings lie more than 32 deep"),
        ("- " * 5000, "lists and mappings lie more than 32 deep"),
        ('"\\ud800"', "there is half of a surrogate pair in the text"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is there twice"),
        ("a: " + "9" * 5000, "a number has too many digits"),
        ("a: 2024-13-45", "month must be in"),
        ("a: \x07", "line 1: there is the control character U\\+0007"),
        ("a: !!python/object:os.system x", "could not determine a constructor for the tag"),
        (b"a: 1\ncaf\xe9: 1\n", r"x.yaml: isn't UTF-8 text \(line 2\); save it as UTF-8"),
        ("a: 1".encode("utf-16"), "isn't UTF-8 text"),
        (b"PAR1" + bytes(99), "this is a Parquet file and not YAML"),
        (bytes(range(256)) * 9, "isn't UTF-8 text"),
    ],
)
def test_what_is_refused(text: str | bytes, message: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        yaml_files.parse(text, "x.yaml")
    assert time.process_time() - started < 10
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@given(st.one_of(st.text("{}[]-:,&*!|>'\"% \n\tab1", max_size=60), st.binary(max_size=40)))
def test_anything_is_read_or_refused_in_a_line(text: str | bytes) -> None:
    message = ""
    try:
        yaml_files.parse(text, "x.yaml")
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "large").write_bytes(b"#" * 101)
    expected = {
        "pipe": "x.yaml: is not a regular file",
        "dangling": "x.yaml: doesn't exist",
        ".": "x.yaml: is a folder",
        "large": "x.yaml: is larger than ",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message):
            yaml_files.read(tmp_path / name, "x.yaml", max_bytes=100)
