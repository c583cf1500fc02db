"""`results.parquet`: one row per concept, written from the store, a few at a time in memory.

The nearest concept of each comes in a second pass: it needs all words, and keeps them on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from safetensors import SafetensorError

from textinv_ray.service.store.store import Store
from textinv_ray.service.views.similarity import Directions, most_alike

_ROWS_PER_GROUP = 1024
_SCORES = (
    "clip_image_similarity_initializer",
    "clip_image_similarity",
    "clip_text_similarity_initializer",
    "clip_text_similarity",
)


def schema(dims: set[int]) -> pa.Schema:
    """Columns of results.parquet. dims: embedding_dim of all words; one model's words have one.

    `vectors` is a list of V fixed-size lists of D floats. The outer list isn't of fixed size even where all
    words have the same V: a failed concept has none, and Arrow can't read a null fixed-size list back.
    """
    vector = pa.list_(pa.float32(), next(iter(dims))) if len(dims) == 1 else pa.list_(pa.float32())
    return pa.schema(
        [
            ("concept_id", pa.string()),
            ("status", pa.string()),
            ("placeholder_token", pa.string()),
            ("initializer_token", pa.string()),
            ("learnable_property", pa.string()),
            ("num_vectors", pa.int32()),
            ("steps", pa.int32()),
            ("stopped", pa.string()),
            ("best_step", pa.int32()),
            *((name, pa.float64()) for name in _SCORES),
            ("final_loss", pa.float64()),
            ("vectors", pa.list_(vector)),
            ("norms", pa.list_(pa.float64())),
            ("nearest_words", pa.list_(pa.string())),
            ("nearest_concept", pa.string()),
            ("nearest_concept_cosine", pa.float64()),
            ("seconds", pa.float64()),
            ("review_seconds", pa.float64()),
            ("look_seconds", pa.float64()),
            ("tags", pa.map_(pa.string(), pa.string())),
            ("error", pa.string()),
        ]
    )


def write(store: Store) -> int:
    """Writes results.parquet anew from everything in the store, by concept_id. Returns the number of rows.

    Raises StoreError.
    """
    columns = schema({result["embedding_dim"] for result in store.results()})
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
        names = [f"concepts/{result['concept_id']}/learned_embeds.safetensors" for result in group]
        for result, (_, data) in zip(group, store.read_many(names), strict=True):
            # Results from before there were stopping rules took all their steps.
            yield {
                "stopped": "steps",
                **result,
                "vectors": _vectors(data),
                "tags": list(result["tags"].items()),
            }
    for failure in store.failures():
        if store.result(failure["concept_id"]) is None:
            yield {"concept_id": failure["concept_id"], "status": "failed", "error": failure["error"]}


def _vectors(data: bytes | None) -> list[np.ndarray] | None:
    """The word's vectors, float32 (V, D); none when the file can't be read."""
    try:
        tensors = safetensors.numpy.load(data) if data else {}
    except SafetensorError:
        return None
    return list(np.atleast_2d(next(iter(tensors.values())))) if tensors else None


def _groups(rows: Iterator[Mapping[str, Any]]) -> Iterator[list[Any]]:
    group: list[Any] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group
