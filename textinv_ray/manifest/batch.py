"""A record batch of a manifest with its columns in plain Arrow types."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Batch:
    """Gives the columns of a record batch: dictionaries decoded, and strings as `string`."""

    def __init__(self, batch: pa.RecordBatch, *, image_bytes: bool = False) -> None:
        """`image_bytes`: whether the bytes of embedded images were read as well."""
        self._batch = batch
        self.has_image_bytes = image_bytes
        """Whether images without `bytes` have none, and not only weren't read."""
        self.names: list[str] = batch.schema.names
        """Columns of the batch."""
        nothing = pa.nulls(len(batch), pa.string())
        ids = self.column("concept_id")
        self.ids: pa.Array = nothing if ids is None else ids
        """concept_id of each row, null without one."""
        given = self.column("placeholder_token")
        default = pc.binary_join_element_wise("<", self.ids, ">", "")
        self.placeholders: pa.Array = default if given is None else pc.coalesce(given, default)
        """placeholder_token of each row, or its default."""

    def __len__(self) -> int:
        return len(self._batch)

    def column(self, name: str) -> pa.Array | None:
        """A column's values; None if it is absent or has the type null."""
        if name not in self.names:
            return None
        column = self._batch.column(name)
        if pa.types.is_null(column.type):
            return None
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column

    def elements(self, name: str) -> tuple[np.ndarray, pa.Array] | None:
        """The elements of all lists of a column: the index of each one's row, int64 (elements,), and their values."""
        column = self.column(name)
        if column is None:
            return None
        flat = pc.list_flatten(column)
        if pa.types.is_dictionary(flat.type):
            flat = flat.dictionary_decode()
        return pc.list_parent_indices(column).to_numpy(zero_copy_only=False), flat

    def lengths(self, name: str) -> np.ndarray:
        """Length of each row's list, 0 for null: int64 (rows,)."""
        column = self.column(name)
        if column is None:
            return np.zeros(len(self), dtype=np.int64)
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)


def short(text: str, limit: int = 80) -> str:
    """The text in quotes for a message, cut off after `limit` characters."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
