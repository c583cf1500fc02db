"""What the check saw is what workers get: every column, every type, through the bytes that go between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textinv_ray.manifest import row_bytes
from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.manifest.kinds import IMAGES, INTEGER, INTEGERS, MASKS, NUMBER, STRING, STRINGS, TAGS
from textinv_ray.manifest.reader import Manifest

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
strings = st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
integers = st.sampled_from([pa.int8(), pa.int64(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64()])


@st.composite
def columns(draw: st.DrawFn, kind: Any, count: int) -> pa.Array:
    """A column of this kind, in one of the types that other programs write it in."""

    def values(one: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(st.none() | one, min_size=count, max_size=count))

    if kind is STRING:
        return pa.array(values(texts), pa.string()).cast(draw(strings))
    if kind is INTEGER:
        return pa.array(values(st.integers(0, 100)), draw(integers))
    if kind is NUMBER:
        kinds = st.sampled_from([pa.float32(), pa.float64()])
        return pa.array(values(st.floats(0, 1, width=32)), draw(kinds))
    if kind is STRINGS:
        inner = draw(st.sampled_from([pa.string(), pa.large_string()]))
        outer = draw(st.sampled_from([pa.list_, pa.large_list]))
        return pa.array(values(st.lists(st.none() | texts, max_size=3)), outer(inner))
    if kind is INTEGERS:
        return pa.array(
            values(st.lists(st.integers(0, 9), max_size=3)),
            pa.list_(draw(st.sampled_from([pa.int8(), pa.uint64()]))),
        )
    if kind in (IMAGES, MASKS):
        if draw(st.booleans()):
            return pa.array(values(st.lists(st.none() | texts, max_size=3)), pa.list_(pa.string()))
        image = st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=9), "path": st.none() | texts})
        return pa.array(
            values(st.lists(st.none() | image, max_size=3)),
            pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        )
    assert kind is TAGS
    if draw(st.booleans()):
        return pa.array(
            values(
                st.dictionaries(texts, st.none() | texts, max_size=2).map(lambda tags: list(tags.items()))
            ),
            pa.map_(pa.string(), pa.string()),
        )
    return pa.array(
        values(st.fixed_dictionaries({"a": st.none() | st.integers(0, 9), "b": texts})),
        pa.struct({"a": pa.int16(), "b": pa.string()}),
    )


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(1, 6))
    made = {
        name: draw(columns(column.kind, count))
        for name, column in COLUMNS.items()
        if column.required or draw(st.booleans())
    }
    made["concept_id"] = pa.array([f"c{index}" for index in range(count)], made["concept_id"].type)
    return pa.table(made)


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables(), parts=st.integers(1, 3), rows=st.integers(1, 3))
def test_what_the_check_reads_is_what_workers_get(
    tmp_path: Path, table: pa.Table, parts: int, rows: int
) -> None:
    for old in tmp_path.glob("*.parquet"):
        old.unlink()
    for index in range(parts):
        first = len(table) * index // parts
        last = len(table) * (index + 1) // parts
        pq.write_table(table.slice(first, last - first), tmp_path / f"{index}.parquet", row_group_size=rows)
    manifest = Manifest.open(str(tmp_path))
    assert manifest.sound_columns() == [name for name in COLUMNS if name in table.column_names]
    read = list(manifest.rows())
    assert [row["concept_id"] for row in read] == [f"c{index}" for index in range(len(table))]
    assert [row_bytes.decode(row_bytes.encode(row)) for row in read] == read
