"""The columns of results.parquet: fields of `Result`, and a few that only the table has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pyarrow as pa

from textinv_ray.service.store.records import Result, Use, fields_for, range_of


@dataclass(frozen=True)
class TableColumn:
    """A column that isn't a field of `Result`."""

    type: pa.DataType
    text: str
    """For the documentation."""
    unit: str = ""
    """Unit or range."""


OF_RESULT = fields_for(Use.COLUMN)
VECTORS, NEAREST, NEAREST_COSINE, ERROR = "vectors", "nearest_concept", "nearest_concept_cosine", "error"
RETRIEVAL = "retrieval_top1"
_OF_TABLE = {
    VECTORS: TableColumn(
        pa.list_(pa.list_(pa.float32())), "The word's embedding vectors: V lists of D float32 each."
    ),
    NEAREST: TableColumn(
        pa.string(), "The concept whose word is most similar, by the cosine of the means of their vectors."
    ),
    NEAREST_COSINE: TableColumn(pa.float64(), "The cosine of the two.", "cosine, in [-1, 1]"),
    RETRIEVAL: TableColumn(
        pa.float64(),
        "Share of the word's pictures that are nearest to images of its own concept among those of all concepts of the "
        "output, by the features of `scoring.judge`, or without one of `scoring.model`; null in an output with fewer "
        "than 10 concepts.",
        "in [0, 1]",
    ),
    ERROR: TableColumn(pa.string(), "Why a failed concept was given up; null for the others."),
}


def schema(dims: Collection[int]) -> pa.Schema:
    """Columns of results.parquet. dims: embedding_dim of all words; one model's words have one.

    `vectors` is a list of V fixed-size lists of D floats. The outer list isn't of fixed size even where all
    words have the same V: a failed concept has none, and Arrow can't read a null fixed-size list back.
    """
    types = {name: _arrow_type(Result.model_fields[name].annotation) for name in OF_RESULT}
    types |= {name: column.type for name, column in _OF_TABLE.items()}
    if len(dims) == 1:
        types[VECTORS] = pa.list_(pa.list_(pa.float32(), next(iter(dims))))
    return pa.schema(list(types.items()))


def columns_table() -> str:
    """A Markdown table of the columns of results.parquet, for the documentation."""
    lines = ["| column | type | unit or range | what it is |", "|---|---|---|---|"]
    for name in OF_RESULT:
        field = Result.model_fields[name]
        text = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {_arrow_type(field.annotation)} | {range_of(field)} | {text} |")
    lines += [
        f"| `{name}` | {column.type} | {column.unit} | {column.text} |" for name, column in _OF_TABLE.items()
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
