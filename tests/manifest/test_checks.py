"""The manifest's columns for the paper's variants: what is refused, with its message, and what is fine."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from tests.support.tables import WITHOUT_DEFAULT, Write, good, problems
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "vectors_added_at",
            [200],
            "200 is not a step between 1 and 199, the last at which a vector can join",
        ),
        ("vectors_added_at", [5, 0], "0 is not a step between 1 and 199"),
        ("vectors_added_at", [None], "None is not a step between 1 and 199"),
        ("vectors_added_at", [1] * 64, "makes 65 vectors; a word has at most 64"),
        ("regularization_weight", -0.5, "-0.5 is out of range; give a number >= 0"),
        ("per_image_probability", 1.5, "1.5 is out of range; give a number >= 0 and <= 1"),
        ("norm_weight", float("nan"), "nan is out of range; give a number >= 0"),
        ("norm_control", "off", "'off' is none of 'none', 'rescale', 'regularize'"),
        (
            "init_from",
            " ",
            "is empty; give auto, vocabulary_mean, or a learned_embeds.safetensors",
        ),
        (
            "init_from",
            "mean",
            "'mean': is neither auto, vocabulary_mean nor the path or URI of a",
        ),
        ("init_from", "word.pt", "'word.pt': is neither auto, "),
        ("init_from", "ssh://me:SECRET@h/a.safetensors", "'ssh://h/a.safetensors': protocol not among data"),
    ],
)
def test_variants_that_are_refused(write: Write, column: str, value: Any, message: str) -> None:
    (found,) = problems(write(**good(3, **{column: [None, value, None]})))
    assert found.startswith(f"row 1 (c1), column {column!r}: {message}")


def test_variants_that_are_fine(write: Write) -> None:
    columns: dict[str, Any] = {
        "vectors_added_at": [[5, 5], [], None],
        "regularization_weight": [0, 1.5, None],
        "per_image_probability": [0.25, 1, None],
        "norm_control": ["none", "rescale", "regularize"],
        "norm_weight": [None, 2.0, 0.0],
        "init_from": ["auto", "../out/concepts/a/learned_embeds.safetensors", "s3://b/a.safetensors"],
    }
    path = write(**good(**columns))
    assert problems(path) == []
    rows = list(Manifest.open(path).rows())
    assert [row.get("vectors_added_at") for row in rows] == [[5, 5], [], None]


def test_a_configuration_may_add_vectors_later_than_a_row_has_steps(write: Write) -> None:
    config = JobConfig.load("mini", ["training.vectors_added_at=[50]"])
    (found,) = problems(write(**good(steps=[50, 51, None])), config)
    assert found.startswith("row 0 (c0), column 'vectors_added_at': 50 is not a step between 1 and 49")


def test_who_needs_no_initializer(write: Write) -> None:
    starts = ["auto", None, "vocabulary_mean"]
    path = write(**good(initializer_token=pa.nulls(3, pa.string()), init_from=starts))
    (found,) = problems(path, WITHOUT_DEFAULT)
    assert found.startswith("row 1 (c1), column 'initializer_token': is missing")
    auto = JobConfig.load("mini", ["training.initializer_token=null", "training.init_from=auto"])
    assert problems(path, auto) == []


def test_vectors_added_at_must_be_integers(write: Write) -> None:
    (found,) = problems(write(**good(vectors_added_at=[["5"]] * 3)))
    assert (
        found == "column 'vectors_added_at': has the type list<element: string>; expected: list of integers"
    )
