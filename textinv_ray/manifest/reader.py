"""Opens a manifest, Parquet with one row per concept, and reads its rows as a stream: the one reader of manifests.

manifest = Manifest.open("manifest.parquet")
checks.check(manifest, config, tokenizer)  # raises UserError that lists the problems by row and column
for row in manifest.rows(): ...

The check, the plan and the workers' preparation all read by it, so that none of them sees other rows or other values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from textinv_ray.manifest.columns import COLUMNS, Row, plain_row
from textinv_ray.manifest.parts import Part, find
from textinv_ray.manifest.problem import Problem, place, raise_problems
from textinv_ray.util import retries
from textinv_ray.util.errors import UnreachableError, UserError
from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.text import nearest, one_line

_BATCH_ROWS = 8192
_BATCH_ROWS_WITH_BYTES = 16


@dataclass(frozen=True)
class Manifest:
    """An opened manifest. Rows are read as a stream; only the files' footers are kept in memory."""

    uri: str
    """As the user gave it: a path or an fsspec URI of a file, a folder, a prefix or a glob, possibly with
    credentials."""
    base: str
    """The manifest's folder, which relative image paths start from: an absolute path or a URI."""
    parts: tuple[Part, ...] = field(repr=False)
    """Its files, in the order of their names."""

    @property
    def num_rows(self) -> int:
        """Number of rows, which is the number of concepts."""
        return sum(part.num_rows for part in self.parts)

    @classmethod
    def open(cls, uri: str, *, check_schema: bool = True) -> Manifest:
        """Opens a local path or any fsspec URI, and reads the footers.

        Raises UserError when a file is missing, unreadable, empty or not Parquet. With `check_schema` also when columns
        are missing, unknown or of the wrong type.
        """
        manifest = cls(uri, *_found(uri))
        if manifest.num_rows == 0:
            raise UserError(f"{redact(uri)}: the manifest has no rows; it needs one per concept")
        if check_schema:
            raise_problems(uri, iter(manifest.schema_problems()))
        return manifest

    def schema_problems(self) -> list[Problem]:
        """Missing, unknown, repeated and mistyped columns, each once, with the first part that has the problem."""
        found: dict[tuple[str, str], Problem] = {}
        for schema, part in {part.schema: part for part in reversed(self.parts)}.items():
            for name, message in _schema_problems(schema):
                found[name, message] = Problem(None, None, name, message, part.name)
        return list(found.values())

    def sound_columns(self) -> list[str]:
        """Names of the known columns in the files whose type is right in all of them."""
        wrong = {problem.column for problem in self.schema_problems()}
        return [name for name in COLUMNS if name in self._names and name not in wrong]

    def unsound_columns(self) -> set[str]:
        """Names of the columns in the files that aren't among `sound_columns`."""
        return self._names - set(self.sound_columns())

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the first file."""
        return self.parts[0].schema

    @property
    def _names(self) -> set[str]:
        return {name for part in self.parts for name in part.schema.names}

    def batches(self, columns: list[str], *, image_bytes: bool = False) -> Iterator[pa.RecordBatch]:
        """Streams the named columns in the files' order.

        A part without one of the columns gives batches without it. `image_bytes=False` leaves out the bytes of embedded
        images, if each has a `path` as well. Raises UserError for what can't be read, with the place where it can be
        known.
        """
        for _, _, batch in self.placed_batches(columns, image_bytes=image_bytes):
            yield batch

    def placed_batches(
        self, columns: list[str], *, image_bytes: bool = False
    ) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """The same, each with the name of its part and the number of its first row in the part."""
        for part in self.parts:
            row = 0
            for batch in batches_of(part, columns, image_bytes=image_bytes):
                yield part.name, row, batch
                row += len(batch)

    def rows(self, *, image_bytes: bool = True) -> Iterator[Row]:
        """Streams the rows in the files' order. `image_bytes`: as in `batches`."""
        for _, row in self.placed_rows(image_bytes=image_bytes):
            yield row

    def placed_rows(self, *, image_bytes: bool = True) -> Iterator[tuple[str, Row]]:
        """The same, each with its place in words, such as "row 3"."""
        for part, first, batch in self.placed_batches(self.sound_columns(), image_bytes=image_bytes):
            for index, row in enumerate(batch.to_pylist()):
                yield place(part, first + index), plain_row(row)

    def count_images(self) -> int:
        """Number of images of all rows."""
        lengths = (
            pc.sum(pc.list_value_length(batch.column(0))).as_py() for batch in self.batches(["images"])
        )
        return sum(length or 0 for length in lengths)


def _found(uri: str) -> tuple[str, tuple[Part, ...]]:
    base, parts = find(uri)
    return base, tuple(parts)


def _schema_problems(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    """(column, message) of what is wrong with the columns of a file."""
    for name, column in COLUMNS.items():
        if column.required and name not in schema.names:
            yield name, f"is missing; expected: {column.kind.expected}"
    for name in dict.fromkeys(schema.names):
        if name not in COLUMNS:
            if not name.startswith("__index_level_"):  # pandas writes its index as a column
                near = nearest(name, list(COLUMNS)) or f" (known: {', '.join(COLUMNS)})"
                yield name, f"is not a column of a manifest{near}"
            continue
        count = schema.names.count(name)
        if count > 1:
            yield name, f"is there {count} times; keep one"
            continue
        kind, found = COLUMNS[name].kind, schema.field(name).type
        if not types.is_null(found) and not kind.accepts(found):
            yield name, f"has the type {found}; expected: {kind.expected}"


def batches_of(part: Part, columns: list[str], *, image_bytes: bool) -> Iterator[pa.RecordBatch]:
    """Streams the named columns of one part, as `Manifest.batches` does. Every value was checked to be readable."""
    with part.open() as file:
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]
        leaves = [path for path in leaves if path.split(".", 1)[0] in columns]
        embedded = _leaves_of_images(leaves, "bytes")
        if not image_bytes:
            left_out = [embedded[name] for name in embedded.keys() & _leaves_of_images(leaves, "path").keys()]
            leaves = [path for path in leaves if path not in left_out]
            embedded = _leaves_of_images(leaves, "bytes")
        rows = _BATCH_ROWS_WITH_BYTES if embedded else _BATCH_ROWS
        # Threads of Arrow that still call a Python file when the process ends would end it by a signal.
        stream = file.iter_batches(rows, columns=leaves, use_threads=not part.is_remote)
        first = 0
        while True:
            try:
                batch = next(stream, None)
            except Exception as error:
                if part.is_remote and retries.is_transient(error):
                    raise UnreachableError(f"{part.label}: can't be read: {_reason(error)}") from None
                raise UserError(f"{part.label}: {_unreadable(file, leaves, error)}") from None
            if batch is None:
                return
            try:
                batch.validate(full=True)
            except Exception as error:
                raise UserError(f"{part.label}: {_invalid(batch, first, error)}") from None
            yield batch
            first += len(batch)


def _leaves_of_images(leaves: list[str], field: str) -> dict[str, str]:
    """The Parquet leaf of this field in each column of images or masks, by the column's name."""
    named = ((path.split(".", 1)[0], path) for path in leaves if path.endswith(f".{field}"))
    return {name: path for name, path in named if name in ("images", "masks")}


def _unreadable(file: pq.ParquetFile, leaves: list[str], error: Exception) -> str:
    """What can't be read, by reading each row group and column apart."""
    for group in range(file.num_row_groups):
        for leaf in leaves:
            try:
                file.read_row_group(group, columns=[leaf], use_threads=False)
            except Exception as found:
                column = leaf.split(".", 1)[0]
                return f"column {column!r} can't be read in row group {group}: {_reason(found)}"
    return f"can't be read: {_reason(error)}"


def _invalid(batch: pa.RecordBatch, first: int, error: Exception) -> str:
    """Which value of a batch is none, such as a text that isn't UTF-8. `first`: the number of its first row."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except Exception as found:
            for index in range(len(column)):
                try:
                    column[index].as_py()
                except Exception:
                    return f"row {first + index}, column {name!r}: can't be read: {_reason(found)}"
            return (
                f"rows {first} to {first + len(batch) - 1}, column {name!r}: can't be read: {_reason(found)}"
            )
    return f"rows {first} to {first + len(batch) - 1} can't be read: {_reason(error)}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
        return "a text isn't UTF-8"
    return one_line(redact_text(str(error)), 300) or type(error).__name__
