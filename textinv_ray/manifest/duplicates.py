"""Finds concept ids and placeholder tokens that more than one row has.

The first pass keeps a hash of each value, 8 bytes per row. A second pass, made only if hashes are equal, compares the
values themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from textinv_ray.manifest.batch import Batch, short
from textinv_ray.manifest.problem import Problem, place
from textinv_ray.manifest.reader import Manifest

_NULL = np.int64(np.iinfo(np.int64).min)


class Duplicates:
    """Looks for values of one column that several rows have."""

    def __init__(
        self,
        column: str,
        values: Callable[[Batch], pa.Array],
        advice: str,
        hash_of: Callable[[str], int] = hash,
    ) -> None:
        """`values`: of a batch, as they are compared. `advice`: ends the message of each duplicate. `hash_of`: by
        default Python's own hash, which is random per process, so that nobody can make up colliding values."""
        self._column, self._values, self._advice, self._hash_of = column, values, advice, hash_of
        self._hashes: list[np.ndarray] = []

    def add(self, batch: Batch) -> None:
        """Notes the hashes of the next batch."""
        self._hashes.append(self._hash(batch))

    def problems(self, manifest: Manifest) -> Iterator[Problem]:
        """A problem for each row whose value an earlier row has. To be called when all batches were added.

        Rows with the same concept_id get no second message for their placeholder_token, which follows from it.
        """
        unique, counts = np.unique(np.concatenate([np.empty(0, np.int64), *self._hashes]), return_counts=True)
        candidates = unique[(counts > 1) & (unique != _NULL)]
        if len(candidates) == 0:
            return
        columns = [name for name in manifest.sound_columns() if name in ("concept_id", "placeholder_token")]
        seen: dict[str, tuple[str, str | None]] = {}
        for part, first, records in manifest.placed_batches(columns):
            batch = Batch(records)
            values = self._values(batch)
            for index in np.flatnonzero(np.isin(self._hash(batch), candidates)).tolist():
                value, concept_id = values[index].as_py(), batch.ids[index].as_py()
                here = place(part, first + index)
                other, same_id = seen.setdefault(value, (here, concept_id))
                if other == here or (self._column != "concept_id" and concept_id == same_id):
                    continue
                original = batch.ids if self._column == "concept_id" else batch.placeholders
                message = f"{short(original[index].as_py())} is used by {other} already; {self._advice}"
                yield Problem(first + index, concept_id, self._column, message, part)

    def _hash(self, batch: Batch) -> np.ndarray:
        """int64 (rows,)."""
        texts = self._values(batch).to_pylist()
        hashes = (_NULL if text is None else self._hash_of(text) for text in texts)
        return np.fromiter(hashes, np.int64, len(texts))


def of_manifest(hash_of: Callable[[str], int] = hash) -> list[Duplicates]:
    """The columns whose values must be unique in a manifest."""
    return [
        Duplicates("concept_id", lambda batch: batch.ids, "give each concept its own", hash_of),
        Duplicates(
            "placeholder_token",
            lambda batch: pc.utf8_lower(batch.placeholders),
            "tokenizers ignore case; give each concept its own",
            hash_of,
        ),
    ]
