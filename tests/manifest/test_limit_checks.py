"""Lengths of texts and lists: the limits of the one table of columns, said by row."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pytest

from tests.support import tiny
from tests.support.tables import Write, good, problems
from textinv_ray.manifest.columns import COLUMNS, Column
from textinv_ray.manifest.kinds import IMAGES, INTEGERS, STRING, STRINGS, TAGS

LIMITED = [
    column
    for column in COLUMNS.values()
    if column.kind in (STRING, STRINGS, IMAGES) and not column.choices and column.name != "concept_id"
]


def text(column: Column, length: int) -> str:
    end = ".safetensors" if column.name == "init_from" else "{}" if column.has_placeholder else ""
    return "x" * (length - len(end)) + end


@pytest.mark.parametrize("column", LIMITED, ids=lambda column: str(column.name))
def test_texts(write: Write, column: Column) -> None:
    def made(length: int) -> Any:
        return text(column, length) if column.kind is STRING else [text(column, length)]

    limit = column.max_length
    columns: dict[str, Any] = {column.name: [made(limit), made(limit + 1), made(500_000)]}
    path = write(**good(**columns))
    assert problems(path) == [
        f"row {row} (c{row}), column {column.name!r}: a text has {length} characters; give at most {limit}"
        for row, length in ((1, limit + 1), (2, 500_000))
    ]


@pytest.mark.parametrize(
    "column",
    [c for c in COLUMNS.values() if c.kind in (STRINGS, INTEGERS, IMAGES)],
    ids=lambda c: str(c.name),
)
def test_lists(write: Write, column: Column) -> None:
    entry = 1 if column.kind is INTEGERS else text(column, 5)
    counts = column.max_count + 1, 2
    columns: dict[str, Any] = {"num_vectors": [1, 1], column.name: [[entry] * count for count in counts]}
    if column.name == "captions":
        columns["images"] = [["a.png"] * count for count in counts]
    found = problems(write(**good(2, **columns)))
    assert (
        f"row 0 (c0), column {column.name!r}: has {counts[0]} entries; give at most {counts[0] - 1}" in found
    )
    assert not any(line.startswith("row 1") for line in found)


def test_tags(write: Write) -> None:
    limits = COLUMNS["tags"]
    tags = [
        [("a" * 250, "b" * limits.max_length)],
        [(f"{number}", "") for number in range(101)],
        [("a" * 251, "b" * (limits.max_length + 1))],
    ]
    path = write(**good(tags=pa.array(tags, pa.map_(pa.string(), pa.string()))))
    assert limits.kind is TAGS
    assert problems(path) == [
        "row 1 (c1), column 'tags': has 101 tags; give at most 100",
        "row 2 (c2), column 'tags': the name of a tag has 251 characters; give at most 250",
        "row 2 (c2), column 'tags': a text has 5001 characters; give at most 5000",
    ]


def test_enormous_cells_take_seconds(write: Write) -> None:
    columns: dict[str, Any] = {
        "templates": [["x" * 500_000 + "{}"], ["{}"] * 300_000, None],
        "images": [["a"], ["x" * 300_000], ["a"] * 300_000],
        "initializer_token": ["x" * 500_000, "cat", "cat"],
        "placeholder_token": ["<a>", "y" * 500_000, "z"],
    }
    started = time.process_time()
    found = problems(write(**good(**columns)), tokenizers={"clip_l": tiny.tokenizer()})
    assert time.process_time() - started < 15
    assert all(len(line) < 500 for line in found)
    assert {"templates", "images", "initializer_token", "placeholder_token"} <= {
        line.split("'")[1] for line in found
    }
