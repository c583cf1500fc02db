"""The manifest: what is refused, with its message, and what is tolerated."""

from __future__ import annotations

import os
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.tables import CONFIG, WITHOUT_DEFAULT, Write, good, problems
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks, duplicates
from textinv_ray.manifest.batch import Batch
from textinv_ray.manifest.columns import plain_row, schema
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError

# Columns


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


# Rows


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"concept_id": ["c0", "a/b", "c2"]},
            "row 1 (a/b), column 'concept_id': 'a/b' has a path separator; use letters, digits, '.', '_' ",
        ),
        ({"concept_id": ["c0", "a\\b", "c2"]}, "has a path separator"),
        ({"concept_id": ["c0", "..", "c2"]}, "row 1 (..), column 'concept_id': '..' is not a safe name"),
        ({"concept_id": ["c0", "ä", "c2"]}, "'ä' is not a safe name"),
        ({"concept_id": ["c0", "a\n", "c2"]}, r"'a\n' is not a safe name"),
        ({"concept_id": ["c0", "x" * 129, "c2"]}, "is too long; use"),
        ({"concept_id": ["c0", "", "c2"]}, "row 1, column 'concept_id': is empty; every concept needs an id"),
        ({"concept_id": ["c0", None, "c2"]}, "row 1, column 'concept_id': is empty"),
        (
            {"concept_id": ["c0", "c1", "c0"]},
            "row 2 (c0), column 'concept_id': 'c0' is used by row 0 already; give each concept its own",
        ),
        (
            {"placeholder_token": ["<x>", "<y>", "<X>"]},
            "row 2 (c2), column 'placeholder_token': '<X>' is used by row 0 already; tokenizers ignore case",
        ),
        (
            {"placeholder_token": [None, "<C0>", None]},
            "row 1 (c1), column 'placeholder_token': '<C0>' is used by",
        ),
        (
            {"placeholder_token": [None, "my cat", None]},
            "column 'placeholder_token': 'my cat' is not one word; use something like '<cat-toy>', without",
        ),
        ({"placeholder_token": [None, "", None]}, "'' is not one word"),
        ({"placeholder_token": [None, "{}", None]}, "'{}' is not one word"),
        (
            {"initializer_token": ["cat", "", "cat"]},
            "row 1 (c1), column 'initializer_token': is empty; name a word",
        ),
        ({"initializer_token": ["cat", "\u200b\u3000", "cat"]}, "column 'initializer_token': is empty"),
        ({"initializer_token": ["cat", " \t", "cat"]}, "row 1 (c1), column 'initializer_token': is empty"),
        ({"learnable_property": ["object", "stile", None]}, "'stile' is neither 'object' nor 'style'"),
        (
            {"images": [["a"], [], ["b"]]},
            "row 1 (c1), column 'images': has no images; give 1 or more (3 to 5 are best)",
        ),
        ({"images": [["a"], None, ["b"]]}, "row 1 (c1), column 'images': has no images"),
        ({"images": [["a"], ["b", None], ["c"]]}, "row 1 (c1), column 'images': an image has no URI"),
        ({"images": [["a"], ["b", ""], ["c"]]}, "row 1 (c1), column 'images': an image has no URI"),
        (
            {"images": [["a"], ["b", "ftp://me:SECRET@h/x"], ["S3://c"]]},
            "row 1 (c1), column 'images': 'ftp://h/x': protocol not among data.allowed_protocols (file, http",
        ),
        (
            {"captions": [None, ["a {}", "b {}"], []]},
            "row 1 (c1), column 'captions': has 2 captions for 1 images; give at most one per image",
        ),
        (
            {"captions": [None, ["a cat"], []]},
            "row 1 (c1), column 'captions': 'a cat' doesn't say where the word goes; write {} there",
        ),
        ({"prompts": [None, ["a {}", None], []]}, "row 1 (c1), column 'prompts': has an empty entry"),
        ({"templates": [None, ["a {}", "b"], []]}, "row 1 (c1), column 'templates': 'b' doesn't say where"),
        (
            {"steps": [1, 0, None]},
            "row 1 (c1), column 'steps': 0 is out of range; give a whole number >= 1 and <= 1000000",
        ),
        ({"steps": [1.0, 1.5, None]}, "row 1 (c1), column 'steps': 1.5 is out of range; give a whole number"),
        ({"steps": [1.0, float("nan"), None]}, "column 'steps': nan is out of range"),
        (
            {"learning_rate": [1e-3, 0.0, None]},
            "row 1 (c1), column 'learning_rate': 0.0 is out of range; give a number > 0 and <= 10",
        ),
        ({"learning_rate": [1e-3, float("inf"), None]}, "column 'learning_rate': inf is out of range"),
        ({"batch_size": [1, 5000, None]}, "row 1 (c1), column 'batch_size': 5000 is out of range"),
        ({"num_vectors": [1, 65, None]}, "row 1 (c1), column 'num_vectors': 65 is out of range"),
        ({"seed": [1, -1, None]}, "row 1 (c1), column 'seed': -1 is out of range; give a whole number >= 0"),
        (
            {"seed": pa.array([1, 2**63, None], pa.uint64())},
            "column 'seed': 9223372036854775808 is out of range",
        ),
    ],
)
def test_a_wrong_row(write: Write, columns: dict[str, Any], expected: str) -> None:
    found = problems(write(**good(**columns)))
    assert len(found) == 1
    assert expected in found[0]
    assert "SECRET" not in found[0]


def test_an_initializer_is_needed_unless_the_configuration_has_one(write: Write) -> None:
    path = write(**good(initializer_token=["cat", None, "cat"]))
    assert problems(path) == []
    (found,) = problems(path, WITHOUT_DEFAULT)
    assert found.startswith("row 1 (c1), column 'initializer_token': is missing; name a word or phrase near")
    columns = good()
    del columns["initializer_token"]
    assert len(problems(write(**columns), WITHOUT_DEFAULT)) == 3


def test_words_of_the_tokenizer(write: Write) -> None:
    columns = good(
        4, placeholder_token=["<new>", "Cat", "<|endoftext|>", None], initializer_token=["a cat"] * 4
    )
    found = problems(write(**columns), tokenizer=tiny.tokenizer())
    assert found == [
        "row 1 (c1), column 'placeholder_token': 'Cat' is already a word of the model's tokenizer; "
        "use a new one like '<Cat>'",
        "row 2 (c2), column 'placeholder_token': '<|endoftext|>' is already a word of the model's tokenizer; "
        "use a new one like '<<|endoftext|>>'",
    ]


def test_an_initializer_that_gives_no_token(write: Write) -> None:
    class OfFewWords:
        unk_token_id = 0

        def get_vocab(self) -> dict[str, int]:
            return {"<|endoftext|>": 0, "cat</w>": 1}

        def __call__(self, text: str, add_special_tokens: bool) -> Any:
            assert not add_special_tokens
            return types.SimpleNamespace(input_ids=[int(word == "cat") for word in text.split()])

    path = write(**good(initializer_token=["cat", "黒猫", "blue cat"]))
    assert problems(path, tokenizer=tiny.tokenizer()) == []
    assert problems(path, tokenizer=OfFewWords()) == [
        "row 1 (c1), column 'initializer_token': '黒猫' gives no token of the model's tokenizer; use another"
    ]


def test_local_files_can_be_forbidden(write: Write) -> None:
    path = write(**good(images=[["/etc/passwd"], ["x/../y.png"], ["s3://b/x"]]))
    found = problems(path, JobConfig.load("mini", ["data.allowed_protocols=[s3]"]))
    assert [line.split(",")[0] for line in found] == ["row 0 (c0)", "row 1 (c1)"]


# What is tolerated


def test_types_of_other_writers(write: Write) -> None:
    large = pa.large_string()
    columns = {
        "concept_id": pa.array(["a", "b"], large),
        "images": pa.array([["x.png"], ["y.png"]], pa.large_list(large)),
        "placeholder_token": pa.array(["<x>", None]).dictionary_encode(),
        "initializer_token": pa.array(["cat", "cat"]).dictionary_encode(),
        "learnable_property": pa.array([None, None], pa.null()),
        "num_vectors": pa.array([1, 2], pa.int8()),
        "steps": pa.array([100.0, None], pa.float64()),
        "seed": pa.array([1, None], pa.uint16()),
        "learning_rate": pa.array([1, 2], pa.int32()),
        "templates": pa.array([["a {}"], []], pa.list_(large)),
        "captions": pa.array([["my <x>"], []], pa.list_(pa.string(), -1)),
        "prompts": pa.array([[], []], pa.list_(pa.null())),
        "tags": pa.array([{"n": 1, "s": "x"}, {"n": None, "s": "y"}]),
    }
    path = write(**columns)
    assert problems(path, tokenizer=tiny.tokenizer()) == []
    first, second = Manifest.open(path).rows()
    assert first == {
        "concept_id": "a",
        "images": ["x.png"],
        "placeholder_token": "<x>",
        "initializer_token": "cat",
        "num_vectors": 1,
        "steps": 100,
        "seed": 1,
        "learning_rate": 1.0,
        "templates": ["a {}"],
        "captions": ["my <x>"],
        "tags": {"n": "1", "s": "x"},
    }
    assert isinstance(first["steps"], int)
    assert second["tags"] == {"s": "y"}


def test_embedded_images_are_read_only_when_asked(write: Write) -> None:
    images = pa.array([[{"bytes": b"x" * 100, "path": "a.png"}], [{"bytes": b"y", "path": None}]] * 2)
    path = write(**good(4, images=images))
    opened = Manifest.open(path)
    checks.check(opened, CONFIG)
    assert opened.count_images() == 4
    assert next(opened.rows())["images"] == [{"bytes": b"x" * 100, "path": "a.png"}]
    assert next(opened.rows(image_bytes=False))["images"] == [{"path": "a.png"}]
    only_bytes = pa.array([[{"bytes": b"x"}]] * 4)
    opened = Manifest.open(write(**good(4, images=only_bytes)))
    checks.check(opened, CONFIG)
    assert opened.count_images() == 4


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


def test_relative_images_start_at_the_manifest(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(**good()))
    monkeypatch.chdir(path.parent)
    assert Manifest.open("m.parquet").base == str(path.parent)
    assert Manifest.open(f"file://{path}").base == str(path.parent)


# All at once


def test_the_message_lists_50_and_counts_the_rest(write: Write) -> None:
    path = write(**good(200, steps=[0] * 200, seed=[-1] + [1] * 199))
    with pytest.raises(UserError) as error:
        checks.check(Manifest.open(path), CONFIG)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: 201 problems in the manifest"
    assert len(lines) == 52
    assert lines[-1] == "  ... and 151 more"
    rows = [int(re.search(r"row (\d+)", line)[1]) for line in lines[1:-1]]  # type: ignore[index]
    assert rows == sorted(rows)


def test_duplicates_are_found_across_batches(write: Write) -> None:
    count = 20_000  # more than two batches
    columns = good(count)
    columns["concept_id"][-1] = "c0"
    columns["placeholder_token"] = [None, "<x>", *[None] * (count - 3), "<X>"]
    found = problems(write(**columns))
    assert [line.split(":")[0] for line in found] == [
        f"row {count - 1} (c0), column 'concept_id'",
        f"row {count - 1} (c0), column 'placeholder_token'",
    ]


def test_equal_hashes_alone_are_no_duplicates(write: Write) -> None:
    columns = good(30)
    columns["concept_id"][29] = "c0"
    opened = Manifest.open(write(**columns))
    found = []
    for values in duplicates.of_manifest(hash_of=lambda text: 0):
        for batch in opened.batches(["concept_id"]):
            values.add(Batch(batch))
        found += [(problem.row, problem.column) for problem in values.problems(opened)]
    assert found == [(29, "concept_id")]


WRONG = {
    "concept_id": st.sampled_from(["a/b", "", "x" * 200, "ü"]),
    "images": st.sampled_from([[], None, [""]]),
    "steps": st.integers(-5, 0),
    "learning_rate": st.floats(-1, 0),
    "learnable_property": st.text(min_size=7),
    "captions": st.just(["no word"]),
    "prompts": st.just([None]),
}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_wrong_cell_is_reported_and_no_other(write: Write, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    columns = good(
        count,
        steps=[5] * count,
        learning_rate=[0.1] * count,
        learnable_property=["style"] * count,
        captions=[["a {}"]] * count,
        prompts=[["a {}"]] * count,
    )
    cells = data.draw(st.sets(st.tuples(st.integers(0, count - 1), st.sampled_from(list(WRONG)))))
    for row, name in cells:
        # A row without images isn't told about its captions as well; an id twice is another problem.
        value = data.draw(WRONG[name])
        if name == "concept_id" and value in columns[name]:
            value = f"{row}/"
        columns[name] = [*columns[name][:row], value, *columns[name][row + 1 :]]
    schema = pa.schema({"images": pa.list_(pa.string()), "prompts": pa.list_(pa.string())})
    for field in schema:
        columns[field.name] = pa.array(columns[field.name], field.type)
    opened = Manifest.open(write(**columns))
    found = {(problem.row, problem.column) for problem in checks.problems(opened, CONFIG)}
    assert found == cells


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "concept_id": st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True),
                "images": st.lists(texts, min_size=1),
            },
            optional={
                "steps": st.integers(1, 1000),
                "seed": st.integers(0, 2**63 - 1),
                "learning_rate": st.floats(1e-6, 1),
                "templates": st.lists(texts.map(lambda text: text + "{}"), min_size=1),
                "tags": st.dictionaries(texts, texts, min_size=1),
                "initializer_token": texts,
                "vectors_added_at": st.lists(st.integers(1, 1000)),
                "regularization_weight": st.floats(0, 1),
                "norm_control": texts,
                "init_from": texts,
            },
        ),
        min_size=1,
        max_size=20,
    )
)
def test_rows_come_back_as_they_were_written(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema(embed=False)), path, row_group_size=3)
    assert list(Manifest.open(str(path)).rows()) == rows


def test_many_rows_take_seconds(write: Write) -> None:
    count = 50_000
    path = write(**good(count, images=[[f"{i}/{k}.jpg" for k in range(4)] for i in range(count)]))
    started = os.times().user
    checks.check(Manifest.open(path), CONFIG, tiny.tokenizer())
    assert os.times().user - started < 10  # about 0.5
