"""Manifests of any form. What `validate` finds nothing wrong with is prepared, or fails alone and says why."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizer

from tests.support import tiny
from textinv_ray.concepts import prepare
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks, row_bytes
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError

CONFIG = JobConfig.load(
    "mini",
    ["data.download_retry_s=0", "data.download_timeout_s=2", "scoring.evaluate_at=[]", "stopping.rule=none"],
)


def png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (9, 7), "red").save(buffer, "PNG")
    return buffer.getvalue()


def mostly(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda number: other if number == 0 else usual)


def cells(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A value of a column: often none, and seldom what nobody expects there."""
    return st.none() | mostly(usual, other)


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=1, max_size=3)


FILES = [
    "ok.png",
    "ok.png",
    "ok.png",
    "broken.png",
    "missing.png",
    "folder",
    "x.safetensors",
    "ok.png?sig=S",
    "s3:/x",
]
URIS = "file:ok.png file:///dev/zero /dev/null ~/none.png data:,x foo://x memory://x :: :// a::b://c".split()  # noqa: SIM905
NASTY = [
    "",
    " ",
    "a b",
    "../x",
    "{}",
    "<c0>",
    "\u202e",
    "\x1b[2J",
    "é",
    "猫",
    "%20",
    "\n",
    "NaN",
    "-1",
    "x" * 9000,
]
nasty = st.sampled_from(NASTY)
texts = mostly(st.sampled_from(["cat", "a cat", "dog", "猫", "é"]), nasty)
uris = mostly(st.sampled_from(FILES), st.sampled_from([*URIS, "http://127.0.0.1:9/x?sig=S", "a\0b"]))
embedded = st.fixed_dictionaries(
    {
        "bytes": mostly(
            st.sampled_from([png(), png(), b"rubbish", b"\xff\xd8\xff"]), st.sampled_from([None, b""])
        ),
        "path": st.none() | uris,
    }
)
prompts = mostly(st.sampled_from(["a photo of {}", "my {}, <c0>", "{}"]), nasty | st.just("{} " * 30))


COLUMNS: dict[str, list[tuple[pa.DataType, st.SearchStrategy[Any]]]] = {
    "images": [
        (pa.list_(pa.string()), mostly(some(uris), st.none() | st.just([None]))),
        (pa.large_list(pa.large_string()), some(uris)),
        (
            pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            mostly(some(embedded), st.lists(st.none() | embedded, max_size=2)),
        ),
        (
            pa.list_(pa.struct({"path": pa.string()})),
            some(st.fixed_dictionaries({"path": uris})),
        ),
        (pa.string(), uris),
    ],
    "initializer_token": [
        (pa.string(), cells(texts, nasty)),
        (pa.dictionary(pa.int8(), pa.string()), cells(texts, nasty)),
    ],
    "placeholder_token": [(pa.string(), cells(st.none(), nasty))],
    "learnable_property": [(pa.string(), cells(st.sampled_from(["object", "style"]), nasty))],
    "num_vectors": [
        (pa.int8(), cells(st.integers(1, 9), st.integers(-9, 99))),
        (pa.float64(), cells(st.just(2.0), st.floats())),
    ],
    "steps": [
        (pa.int64(), cells(st.integers(1, 9), st.integers(-(2**63), 2**63 - 1))),
        (pa.uint64(), cells(st.integers(1, 9), st.integers(0, 2**64 - 1))),
        (pa.float32(), cells(st.just(3.0), st.floats(width=32))),
        (pa.string(), st.none() | texts),
        (pa.bool_(), st.none() | st.booleans()),
    ],
    "learning_rate": [
        (pa.float64(), cells(st.just(0.1), st.floats())),
        (pa.int8(), cells(st.just(1), st.integers(-9, 99))),
    ],
    "batch_size": [(pa.int64(), cells(st.integers(1, 9), st.integers(-9, 9999)))],
    "seed": [
        (pa.uint64(), cells(st.integers(0, 9), st.integers(0, 2**64 - 1))),
        (pa.float64(), cells(st.just(7.0), st.floats())),
    ],
    "templates": [
        (pa.list_(pa.string()), cells(st.lists(prompts, max_size=2), st.lists(st.none() | nasty, max_size=2)))
    ],
    "captions": [
        (
            pa.list_(pa.string(), -1),
            cells(st.lists(prompts, max_size=1), st.lists(st.none() | nasty, max_size=9)),
        )
    ],
    "prompts": [
        (pa.list_(pa.null()), st.none() | st.just([])),
        (pa.list_(pa.string(), 1), st.none() | st.lists(prompts, min_size=1, max_size=1)),
    ],
    "tags": [
        (
            pa.map_(pa.string(), pa.string()),
            st.none() | st.lists(st.tuples(texts, st.none() | texts), max_size=2),
        ),
        (pa.struct({"a": pa.int8(), "b": pa.timestamp("us")}), st.none() | st.just({"a": 1, "b": None})),
    ],
    "init_from": [(pa.string(), cells(st.sampled_from(["auto", "vocabulary_mean"]), uris | nasty))],
    "vectors_added_at": [
        (
            pa.list_(pa.int64()),
            cells(st.lists(st.integers(1, 4), max_size=2), st.lists(st.none() | st.integers(), max_size=2)),
        )
    ],
    "regularization_weight": [(pa.float32(), cells(st.just(0.5), st.floats(width=32)))],
    "per_image_probability": [(pa.float64(), cells(st.just(0.5), st.floats()))],
    "norm_control": [(pa.string(), cells(st.sampled_from(["none", "rescale"]), nasty))],
    "unknown": [(pa.int8(), st.none())],
}
SELDOM = ("unknown",)


@st.composite
def manifests(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(1, 4))
    ids: list[Any] = [f"c{index}" for index in range(count)]
    if draw(st.integers(0, 9)) == 0:
        ids[0] = draw(st.none() | nasty)
    columns = {"concept_id": pa.array(ids, pa.string())}
    for name, kinds in COLUMNS.items():
        if name != "images" and draw(st.integers(0, 29 if name in SELDOM else 2)):
            continue
        kind, values = kinds[0] if draw(st.booleans()) else draw(st.sampled_from(kinds))
        try:
            columns[name] = pa.array([draw(values) for _ in range(count)], kind)
        except (pa.ArrowInvalid, OverflowError):  # a number that the type can't hold
            columns[name] = pa.nulls(count, kind)
    return pa.table(columns)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return tiny.tokenizer()


@pytest.mark.slow
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(table=manifests(), rows=st.integers(1, 4))
def test_what_is_found_sound_is_prepared_or_fails_alone(
    tmp_path: Path, tokenizer: CLIPTokenizer, table: pa.Table, rows: int
) -> None:
    (tmp_path / "ok.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(png()[:40])
    (tmp_path / "folder").mkdir(exist_ok=True)
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=rows)
    try:
        manifest = Manifest.open(str(tmp_path / "m.parquet"), check_schema=False)
        problems = [
            str(problem)
            for problem in checks.problems(manifest, CONFIG, {"clip_l": tokenizer}, image_bytes=True)
        ]
    except UserError as error:
        problems = [str(error)]
    event("refused" if problems else "sound")
    assert all(len(problem) < 600 for problem in problems)
    if problems:
        return
    prepared = 0
    reasons: list[str] = []
    for row in manifest.rows():
        sent = row_bytes.decode(row_bytes.encode(row))
        assert sent == row
        try:
            concept = prepare.make(sent, CONFIG, base=manifest.base, resolution=8, model_identity="m")
            assert concept.concept_id == row["concept_id"]
            prepared += 1
        except (ImageError, ValueError) as error:
            reasons.append(str(error))
    event("prepared" if prepared else "all failed")
    assert all(reasons)
    assert "sig=" not in "".join(reasons)
    assert prepared + len(reasons) == manifest.num_rows == len(table)
