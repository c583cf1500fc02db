"""`results.parquet`: one row per concept, made from the store's results and words.

The nearest concept of a row needs all words, so these are read first and kept in a temporary file on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from textinv_ray.concepts import word_files
from textinv_ray.concepts.retrieval import MAX_CONCEPTS, MIN_CONCEPTS, Features, retrieval_top1
from textinv_ray.service.store import features
from textinv_ray.service.store.records import Failure, Result
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views.columns import (
    ERROR,
    NEAREST,
    NEAREST_COSINE,
    OF_RESULT,
    RETRIEVAL,
    VECTORS,
    schema,
)
from textinv_ray.service.views.similarity import StoredWords, most_alike
from textinv_ray.util import parquet

FILE = "results.parquet"
ROWS_PER_GROUP = 1024
"""Rows whose vectors are in memory at once while the table is written."""


def write(store: Store, stored: StoredResults) -> int:
    """Writes results.parquet, with the rows by concept_id and failed concepts last. Returns the number of rows.

    Raises StoreError.
    """
    table = schema({result.embedding_dim for result in stored.results})
    with store.building(FILE) as path, StoredWords(path.parent) as words:
        names = (f"concepts/{result.concept_id}/{word_files.STORED}" for result in stored.results)
        for row, (_, data) in enumerate(store.read_many(names)):
            word = _word(data)
            if word is not None:
                words.add(row, word)
        pairs, found = words.nearest(), _retrieval(store, stored.results)
        with pq.ParquetWriter(path, table, compression="zstd") as writer:
            for first in range(0, len(stored.results), ROWS_PER_GROUP):
                rows = range(first, min(first + ROWS_PER_GROUP, len(stored.results)))
                writer.write_table(_done(stored.results, rows, words, pairs, found, table))
            if stored.without_result:
                writer.write_table(_failed(stored.without_result, table))
    return len(stored.results) + len(stored.without_result)


def alike(store: Store, count: int) -> list[tuple[str, str, float]]:
    """(concept, concept, cosine) of the most similar pairs, from results.parquet; empty when there is none."""
    pairs = nearest(store).items()
    return most_alike(((concept_id, other, cosine) for concept_id, (other, cosine) in pairs), count)


def nearest(store: Store) -> dict[str, tuple[str, float]]:
    """concept_id -> (its nearest concept, cosine), from results.parquet; empty when there is none."""
    rows = columns(store, ("concept_id", NEAREST, NEAREST_COSINE))
    return {row[0]: (row[1], row[2]) for row in rows if _is_pair(row)}


def retrieval(store: Store) -> dict[str, float]:
    """concept_id -> retrieval_top1, from results.parquet; empty when there is none."""
    rows = columns(store, ("concept_id", RETRIEVAL))
    return {row[0]: row[1] for row in rows if isinstance(row[0], str) and isinstance(row[1], float)}


def columns(store: Store, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Columns of results.parquet, row by row. Empty, with a warning, when the file is damaged or another table."""
    try:
        with store.open(FILE) as file:
            if file is None:
                return []
            table = parquet.read(file, names)
            return list(zip(*(table[name].to_pylist() for name in names), strict=True))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        store.ignore(FILE, f"it can't be read: {error}")
        return []


def _retrieval(store: Store, results: Sequence[Result]) -> dict[int, float]:
    """Place in `results` -> retrieval_top1, by the judge of the concepts or by their scoring model."""
    files = {result.concept_id: f"concepts/{result.concept_id}/{features.FILE}" for result in results}
    by_encoder = retrieval_of(store, files)
    shares = {concept_id: share for found in by_encoder.values() for concept_id, share in found.items()}
    return {row: shares[one.concept_id] for row, one in enumerate(results) if one.concept_id in shares}


def retrieval_of(store: Store, files: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Encoder -> concept_id -> retrieval_top1, from files of features by concept_id.

    Only what one encoder made is compared. Without encoders that have MIN_CONCEPTS to MAX_CONCEPTS concepts.
    """
    if not MIN_CONCEPTS <= len(files) <= MAX_CONCEPTS:
        return {}
    by_encoder: dict[tuple[str, int], dict[str, Features]] = {}
    for concept_id, (name, data) in zip(files, store.read_many(files.values()), strict=True):
        try:
            found = {} if data is None else features.from_bytes(data)
        except ValueError as error:
            store.ignore(name, str(error))
            continue
        for encoder, one in found.items():
            by_encoder.setdefault((encoder, len(one.views)), {})[concept_id] = one
    return {
        encoder: dict(zip(group, retrieval_top1(list(group.values())), strict=True))
        for (encoder, _), group in by_encoder.items()
        if len(group) >= MIN_CONCEPTS
    }


def _is_pair(row: tuple[Any, ...]) -> bool:
    one, other, cosine = row
    return isinstance(one, str) and isinstance(other, str) and isinstance(cosine, float)


def _done(
    results: Sequence[Result],
    rows: range,
    words: StoredWords,
    nearest: Mapping[int, tuple[int, float]],
    retrieval: Mapping[int, float],
    columns: pa.Schema,
) -> pa.Table:
    """The part of the table with these rows, which are places in `results`."""
    found = [results[row] for row in rows]
    values: dict[str, object] = {name: [getattr(result, name) for result in found] for name in OF_RESULT}
    for name in ("tags", "norms", "nearest_words"):
        values[name] = [list(getattr(result, name).items()) for result in found]
    pairs = [nearest.get(row) for row in rows]
    values[NEAREST] = [results[pair[0]].concept_id if pair else None for pair in pairs]
    values[NEAREST_COSINE] = [pair[1] if pair else None for pair in pairs]
    values[VECTORS] = _vectors_column([words.vectors(row) for row in rows], columns.field(VECTORS).type)
    values[RETRIEVAL] = [retrieval.get(row) for row in rows]
    values[ERROR] = [None] * len(found)
    arrays = [_array(values[field.name], field.type) for field in columns]
    return pa.Table.from_arrays(arrays, schema=columns)


def _failed(failures: Sequence[Failure], columns: pa.Schema) -> pa.Table:
    rows = [
        {"concept_id": failure.concept_id, "status": "failed", ERROR: failure.error} for failure in failures
    ]
    return pa.Table.from_pylist(rows, columns)


def _array(values: object, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _vectors_column(words: Sequence[np.ndarray | None], kind: pa.ListType) -> pa.Array:
    """Words, float32 (V, D) or none, as a list array: without a Python object for each number."""
    counts = [0 if vectors is None else len(vectors) for vectors in words]
    flat = [vectors.reshape(-1) for vectors in words if vectors is not None]
    numbers = pa.array(np.concatenate(flat) if flat else np.zeros(0, np.float32))
    inner = kind.value_type
    if pa.types.is_fixed_size_list(inner):
        rows = pa.FixedSizeListArray.from_arrays(numbers, inner.list_size)
    else:  # words of several models
        sizes = [vectors.shape[1] for vectors in words if vectors is not None for _ in vectors]
        rows = pa.ListArray.from_arrays(_offsets(sizes), numbers)
    missing = np.array([vectors is None for vectors in words])
    return pa.ListArray.from_arrays(_offsets(counts), rows, mask=pa.array(missing))


def _offsets(counts: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32))


def _word(data: bytes | None) -> word_files.Word | None:
    """The stored word; none when the file can't be read."""
    try:
        found = word_files.parse_words(data or b"", word_files.STORED)
    except ValueError:
        return None
    return next(iter(found.values()))
