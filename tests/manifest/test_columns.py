"""The table of columns: which columns and types a manifest may have, and values as plain Python."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from tests.support.tables import Write, good, problems
from textinv_ray.concepts.concept import ConceptSettings
from textinv_ray.manifest.columns import COLUMNS, Column, markdown_table, plain_row
from textinv_ray.manifest.image_columns import IMAGE_COLUMNS
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize("name", ["concept_id", "images"])
def test_a_missing_column(write: Write, name: str) -> None:
    columns = good()
    del columns[name]
    path = write(**columns)
    with pytest.raises(
        UserError, match=rf"m.parquet: 1 problem in the manifest\n  column '{name}': is missing"
    ):
        Manifest.open(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("initializer", "is not a column of a manifest; did you mean 'initializer_token'?"),
        ("learning_rat", "is not a column of a manifest; did you mean 'learning_rate'?"),
        ("zzz", "is not a column of a manifest (known: concept_id, images, "),
    ],
)
def test_an_unknown_column(write: Write, name: str, message: str) -> None:
    (found,) = problems(write(**good(3, **{name: [1, 2, 3]})))
    assert found.startswith(f"column {name!r}: {message}")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("concept_id", [1, 2, 3], "has the type int64; expected: string"),
        (
            "images",
            ["a.png"] * 3,
            "has the type string; expected: list of strings (URIs) or list of {bytes, path}",
        ),
        ("images", [[1]] * 3, "has the type list<element: int64>; expected: list of"),
        ("images", [[{"data": b"x"}]] * 3, "has the type list<element: struct<data: binary>>; expected"),
        ("steps", ["5"] * 3, "has the type string; expected: integer"),
        ("steps", [True] * 3, "has the type bool; expected: integer"),
        ("learning_rate", ["x"] * 3, "has the type string; expected: number"),
        ("captions", ["x"] * 3, "has the type string; expected: list of strings"),
        ("templates", [[1]] * 3, "expected: list of strings"),
        ("tags", ["x"] * 3, "has the type string; expected: map of strings, or struct"),
        ("tags", [{"a": {"b": 1}}] * 3, "expected: map of strings, or struct"),
    ],
)
def test_a_mistyped_column(write: Write, name: str, values: list[Any], message: str) -> None:
    found = [line for line in problems(write(**good(3, **{name: values}))) if line.startswith("column")]
    assert len(found) == 1
    assert message in found[0].replace("item:", "element:")


def test_other_columns_are_still_checked(write: Write) -> None:
    found = problems(write(**good(steps=["5"] * 3, batch_size=[4, 0, 4], zzz=[1, 2, 3])))
    assert [line.split(":")[0] for line in found] == [
        "column 'steps'",
        "column 'zzz'",
        "row 1 (c1), column 'batch_size'",
    ]


def test_an_index_that_pandas_wrote_is_ignored(write: Write) -> None:
    assert problems(write(**good(__index_level_0__=[0, 1, 2]))) == []


def test_vectors_added_at_must_be_integers(write: Write) -> None:
    (found,) = problems(write(**good(vectors_added_at=[["5"]] * 3)))
    assert (
        found == "column 'vectors_added_at': has the type list<element: string>; expected: list of integers"
    )


def test_rows_of_numpy_are_plain_too() -> None:
    row = {
        "concept_id": "a",
        "images": np.array(["x"], dtype=object),
        "steps": np.int64(5),
        "learning_rate": np.float64(1),
    }
    plain = plain_row({**row, "tags": [("a", 1)], "templates": np.array([]), "unknown": 1})
    assert plain == {"concept_id": "a", "images": ["x"], "steps": 5, "learning_rate": 1.0, "tags": {"a": "1"}}
    assert type(plain["steps"]) is int


def test_values_that_are_none_of_their_column() -> None:
    with pytest.raises(ValueError, match=r"^steps must be a whole number, not 1.5$"):
        plain_row({"concept_id": "a", "images": ["x"], "steps": 1.5})
    with pytest.raises(ValueError, match=r"^learning_rate could not convert"):
        plain_row({"concept_id": "a", "images": ["x"], "learning_rate": "much"})


def test_every_column_becomes_a_setting_of_the_concept() -> None:
    assert {*COLUMNS} - {*IMAGE_COLUMNS} <= {field.name for field in fields(ConceptSettings)}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=list(COLUMNS))
def test_the_documentation_has_every_column(column: Column) -> None:
    """With its type, its range or choices, and what applies without it."""
    (line,) = [line for line in markdown_table().splitlines() if line.startswith(f"| `{column.name}` |")]
    _name, kind, default, meaning = line.strip("| ").split(" | ")
    assert kind.startswith(column.kind.expected)
    assert all(f"`{choice}`" in kind for choice in column.choices)
    assert all(str(limit) in kind for _, limit in column.limits)
    assert default
    assert meaning == column.text


def test_range_and_choices_are_those_of_the_configuration() -> None:
    assert COLUMNS["num_vectors"].limits == ((">=", 1), ("<=", 64))
    assert COLUMNS["seed"].limits == ((">=", 0), ("<", 2**63))
    assert COLUMNS["norm_control"].choices == ("none", "rescale", "regularize")
    assert COLUMNS["concept_id"].limits == ()
    assert COLUMNS["concept_id"].choices == ()
