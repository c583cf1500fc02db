"""Checks the lengths of texts and lists against the limits in the table of columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textinv_ray.manifest.batch import Batch
from textinv_ray.manifest.columns import COLUMNS, Column
from textinv_ray.manifest.kinds import IMAGES, INTEGERS, MASKS, STRING, STRINGS, TAGS

MAX_TAG_NAME_LENGTH = 250
"""The most characters of the name of a tag, which MLflow sets."""


def over_limits(batch: Batch) -> Iterator[tuple[int, str, str]]:
    """Yields (index, column, message) for each row whose text or list is too long. Its first such text is counted."""
    for column in COLUMNS.values():
        values = batch.column(column.name)
        if values is None or column.name == "concept_id":  # its own check says what an id may be
            continue
        if column.kind is STRING:
            yield from _texts(column, np.arange(len(batch)), values)
        elif column.kind is TAGS:
            yield from _tags(column, values)
        elif column.kind in (STRINGS, INTEGERS, IMAGES, MASKS):
            counts = batch.lengths(column.name)
            for index in np.flatnonzero(counts > column.max_count).tolist():
                yield index, column.name, f"has {counts[index]} entries; give at most {column.max_count}"
            found = batch.elements(column.name)
            if found is not None and column.kind is not INTEGERS:
                yield from _texts(column, *found)


def _texts(column: Column, rows: np.ndarray, texts: pa.Array) -> Iterator[tuple[int, str, str]]:
    """`rows`: the index of each text's row."""
    if pa.types.is_struct(texts.type):
        field = texts.type.get_field_index("path")
        if field < 0:
            return
        texts = pc.struct_field(texts, "path")
    if pa.types.is_null(texts.type):
        return
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    lengths = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False)
    seen: set[int] = set()
    for element in np.flatnonzero(lengths > column.max_length).tolist():
        index = int(rows[element])
        if index not in seen:
            seen.add(index)
            yield (
                index,
                column.name,
                f"a text has {lengths[element]} characters; give at most {column.max_length}",
            )


def _tags(column: Column, values: pa.Array) -> Iterator[tuple[int, str, str]]:
    for index, value in enumerate(values.to_pylist()):
        if not value:
            continue
        tags = column.kind.plain(value)
        longest_name = max(map(len, tags), default=0)
        longest = max(map(len, tags.values()), default=0)
        if len(tags) > column.max_count:
            yield index, column.name, f"has {len(tags)} tags; give at most {column.max_count}"
        if longest_name > MAX_TAG_NAME_LENGTH:
            message = f"the name of a tag has {longest_name} characters; give at most {MAX_TAG_NAME_LENGTH}"
            yield index, column.name, message
        if longest > column.max_length:
            yield index, column.name, f"a text has {longest} characters; give at most {column.max_length}"
