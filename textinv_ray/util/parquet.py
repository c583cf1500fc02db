"""Reads small tables whole, in this thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def read(file: BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """A table, or some columns of it, checked to the last value. Raises pyarrow.ArrowException, OSError and KeyError.

    `pyarrow.parquet.read_table` reads ahead in threads of Arrow. After an error they still call the Python file, and
    when the process ends meanwhile, Python ends such a thread in a way that C++ doesn't survive: "terminate called
    without an active exception", signal 6. So nothing is read ahead here.
    """
    source = pq.ParquetFile(file, pre_buffer=False)
    missing = set(columns or ()) - set(source.schema_arrow.names)
    if missing:
        raise KeyError(f"it has no column {', '.join(sorted(missing))}")
    table = source.read(columns=None if columns is None else list(columns), use_threads=False)
    table.validate(full=True)
    return table
