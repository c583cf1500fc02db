"""`results.parquet`: one row per concept, written from the store, a few at a time in memory.

The nearest concept of each comes in a second pass: it needs all words, and keeps them on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from safetensors import SafetensorError

from textinv_ray.service.store.records import Result, Use, fields_for, range_of
from textinv_ray.service.store.store import Store
from textinv_ray.service.views.similarity import Directions, most_alike

T = TypeVar("T")

_ROWS_PER_GROUP = 1024


@dataclass(frozen=True)
class Column:
    """A column of results.parquet that isn't a field of `Result`."""

    type: pa.DataType
    text: str
    """For the documentation."""
    unit: str = ""
    """Unit or range."""


_FIELDS = set(fields_for(Use.COLUMN))
_VECTORS = "vectors"
_ONLY_HERE = {
    _VECTORS: Column(
        pa.list_(pa.list_(pa.float32())), "The word's embedding vectors: V lists of D float32 each."
    ),
    "nearest_concept": Column(
        pa.string(), "The concept whose word is most similar, by the cosine of the means of their vectors."
    ),
    "nearest_concept_cosine": Column(pa.float64(), "The cosine of the two.", "cosine, in [-1, 1]"),
    "error": Column(pa.string(), "Why a failed concept was given up; null for the others."),
}


def schema(dims: set[int]) -> pa.Schema:
    """Columns of results.parquet. dims: embedding_dim of all words; one model's words have one.

    `vectors` is a list of V fixed-size lists of D floats. The outer list isn't of fixed size even where all
    words have the same V: a failed concept has none, and Arrow can't read a null fixed-size list back.
    """
    types = {name: _arrow_type(Result.model_fields[name].annotation) for name in fields_for(Use.COLUMN)}
    types |= {name: column.type for name, column in _ONLY_HERE.items()}
    if len(dims) == 1:
        types[_VECTORS] = pa.list_(pa.list_(pa.float32(), next(iter(dims))))
    return pa.schema(list(types.items()))


def columns_table() -> str:
    """A Markdown table of the columns of results.parquet, for the documentation."""
    lines = ["| column | type | unit or range | what it is |", "|---|---|---|---|"]
    for name in fields_for(Use.COLUMN):
        field = Result.model_fields[name]
        text = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | `{_arrow_type(field.annotation)}` | {range_of(field)} | {text} |")
    lines += [
        f"| `{name}` | `{column.type}` | {column.unit} | {column.text} |"
        for name, column in _ONLY_HERE.items()
    ]
    return "\n".join(lines)


def _arrow_type(annotation: object) -> pa.DataType:
    """The Arrow type of a field's annotation. Every column may be null: a failed concept has few values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        (annotation,) = (member for member in arguments if member is not NoneType)
        return _arrow_type(annotation)
    if origin is Annotated:
        return _arrow_type(arguments[0])
    if origin is tuple:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is dict:
        return pa.map_(_arrow_type(arguments[0]), _arrow_type(arguments[1]))
    if origin is Literal:
        return pa.string()
    return {str: pa.string(), int: pa.int32(), float: pa.float64()}[annotation]  # type: ignore[index]


def write(store: Store) -> int:
    """Writes results.parquet anew from everything in the store, by concept_id. Returns the number of rows.

    Raises StoreError.
    """
    columns = schema({result.embedding_dim for result in store.results()})
    ids: list[str] = []
    with store.building("results.parquet") as path:
        directions, rows_path = Directions(path.parent), path.with_name("rows.parquet")
        with pq.ParquetWriter(rows_path, columns, compression="zstd") as writer:
            for rows in _groups(_rows(store)):
                for row in rows:
                    if row.get("vectors"):
                        directions.add(len(ids), row["vectors"])
                    ids.append(row["concept_id"])
                writer.write_table(pa.Table.from_pylist(rows, columns))
        _add_nearest(rows_path, path, ids, directions.nearest())
    return len(ids)


def alike(store: Store, count: int) -> list[tuple[str, str, float]]:
    """(concept, concept, cosine) of the most similar pairs, from results.parquet; empty when there is none."""
    names = ["concept_id", "nearest_concept", "nearest_concept_cosine"]
    try:
        with store.fs.open(store.path("results.parquet"), "rb") as file:
            table = pq.read_table(file, columns=names)
    except (FileNotFoundError, pa.ArrowInvalid):
        return []
    columns = zip(*(table[name].to_pylist() for name in names), strict=True)
    return most_alike((row for row in columns if row[1] is not None), count)


def _add_nearest(
    source: Path, target: Path, ids: list[str], nearest: Mapping[int, tuple[int, float]]
) -> None:
    """Copies results.parquet with the nearest concepts filled in, a group of rows at a time."""
    first = 0
    with (
        pq.ParquetFile(source) as file,
        pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer,
    ):
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            found = [nearest.get(first + index) for index in range(len(table))]
            others = [ids[pair[0]] if pair else None for pair in found]
            cosines = [pair[1] if pair else None for pair in found]
            for name, values in (("nearest_concept", others), ("nearest_concept_cosine", cosines)):
                field = table.schema.field(name)
                table = table.set_column(
                    table.schema.get_field_index(name), field, pa.array(values, field.type)
                )
            writer.write_table(table)
            first += len(table)


def _rows(store: Store) -> Iterator[dict[str, Any]]:
    for group in _groups(store.results()):
        names = [f"concepts/{result.concept_id}/learned_embeds.safetensors" for result in group]
        for result, (_, data) in zip(group, store.read_many(names), strict=True):
            row = result.model_dump(include=_FIELDS)
            yield row | {"vectors": _vectors(data), "tags": list(result.tags.items())}
    for failure in store.failures():
        if store.result(failure.concept_id) is None:
            yield {"concept_id": failure.concept_id, "status": "failed", "error": failure.error}


def _vectors(data: bytes | None) -> list[np.ndarray] | None:
    """The word's vectors, float32 (V, D); none when the file can't be read."""
    try:
        tensors = safetensors.numpy.load(data) if data else {}
    except SafetensorError:
        return None
    return list(np.atleast_2d(next(iter(tensors.values())))) if tensors else None


def _groups(rows: Iterator[T]) -> Iterator[list[T]]:
    group: list[T] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group
