"""Opens a manifest, a Parquet file with one row per concept, and reads its rows as a stream.

manifest = Manifest.open("manifest.parquet")
checks.check(manifest, config, tokenizer)  # raises UserError that lists the problems by row and column
for row in manifest.rows(): ...
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from textinv_ray.manifest.columns import COLUMNS, Row, plain_row
from textinv_ray.manifest.problem import Problem, raise_problems
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.submitted_job import is_submitted_job, runs_in_uploaded_folder
from textinv_ray.util.text import nearest

_RETRY_S = 60.0
_BATCH_ROWS = 8192
_BATCH_ROWS_WITH_BYTES = 16


@dataclass(frozen=True)
class Manifest:
    """An opened manifest. Rows are read as a stream; only the file's footer is kept in memory."""

    uri: str
    """As the user gave it: a path or an fsspec URI, possibly with credentials."""
    base: str
    """The manifest's folder, which relative image paths start from: an absolute path or a URI."""
    num_rows: int
    """Number of rows, which is the number of concepts."""
    schema: pa.Schema
    """The file's Arrow schema."""

    @classmethod
    def open(cls, uri: str, *, check_schema: bool = True) -> Manifest:
        """Opens a local path or any fsspec URI, and reads the file's footer.

        Raises UserError when the file is missing, unreadable, empty or not Parquet. With `check_schema` also when
        columns are missing, unknown or of the wrong type.
        """
        with _open_parquet(uri) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{redact(uri)}: the manifest has no rows; it needs one per concept")
            manifest = cls(uri, _base(uri), file.metadata.num_rows, file.schema_arrow)
        if check_schema:
            raise_problems(uri, iter(manifest.schema_problems()))
        return manifest

    def schema_problems(self) -> list[Problem]:
        """Missing, unknown, repeated and mistyped columns."""
        missing = [
            Problem(None, None, name, f"is missing; expected: {column.kind.expected}")
            for name, column in COLUMNS.items()
            if column.required and name not in self.schema.names
        ]
        wrong = [
            Problem(None, None, name, message)
            for name in dict.fromkeys(self.schema.names)
            if (message := self._schema_problem(name))
        ]
        return missing + wrong

    def _schema_problem(self, name: str) -> str:
        """What is wrong with a column of the file; empty: nothing."""
        if name not in COLUMNS:
            if name.startswith("__index_level_"):  # pandas writes its index as a column
                return ""
            near = nearest(name, list(COLUMNS)) or f" (known: {', '.join(COLUMNS)})"
            return f"is not a column of a manifest{near}"
        count = self.schema.names.count(name)
        if count > 1:
            return f"is there {count} times; keep one"
        kind, found = COLUMNS[name].kind, self.schema.field(name).type
        if types.is_null(found) or kind.accepts(found):
            return ""
        return f"has the type {found}; expected: {kind.expected}"

    def sound_columns(self) -> list[str]:
        """Names of the known columns in the file whose type is right."""
        wrong = {problem.column for problem in self.schema_problems()}
        return [name for name in COLUMNS if name in self.schema.names and name not in wrong]

    def batches(self, columns: list[str], *, image_bytes: bool = False) -> Iterator[pa.RecordBatch]:
        """Streams the named columns in the file's order.

        `image_bytes=False` leaves out the bytes of embedded images, if each has a `path` as well.
        """
        with _open_parquet(self.uri) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            leaves = [path for path in leaves if path.split(".", 1)[0] in columns]
            embedded = [path for path in leaves if path.startswith("images.") and path.endswith(".bytes")]
            has_path = any(path.startswith("images.") and path.endswith(".path") for path in leaves)
            if embedded and not image_bytes and has_path:
                leaves = [path for path in leaves if path not in embedded]
                embedded = []
            rows = _BATCH_ROWS_WITH_BYTES if embedded else _BATCH_ROWS
            yield from file.iter_batches(batch_size=rows, columns=leaves)

    def rows(self, *, image_bytes: bool = True) -> Iterator[Row]:
        """Streams the rows in the file's order. `image_bytes`: as in `batches`."""
        for batch in self.batches(self.sound_columns(), image_bytes=image_bytes):
            for row in batch.to_pylist():
                yield plain_row(row)

    def count_images(self) -> int:
        """Number of images of all rows."""
        batches = self.batches(["images"])
        lengths = (pc.sum(pc.list_value_length(batch.column(0))).as_py() for batch in batches)
        return sum(length or 0 for length in lengths)


def _base(uri: str) -> str:
    """The manifest's folder. A local one as an absolute path, because workers have another working directory."""
    protocol, separator, path = uri.rpartition("://")
    if protocol in ("", "file", "local"):
        return os.path.dirname(os.path.abspath(path))
    return protocol + separator + path.split("?", 1)[0].rpartition("/")[0]


def _open_parquet(uri: str) -> pq.ParquetFile:
    """Opens the Parquet file. Raises UserError that says what went wrong and what to do."""
    shown = redact(uri)
    protocol, _, path = uri.rpartition("://")
    try:
        if protocol in ("", "file", "local"):
            size = os.stat(path).st_size
            if os.path.isdir(path):
                raise IsADirectoryError
            source: object = path
        else:
            import fsspec

            filesystem, remote = fsspec.core.url_to_fs(uri)
            size = retries.call(lambda: filesystem.size(remote), patience_s=_RETRY_S, what=shown)
            source = filesystem.open(remote, "rb")
    except FileNotFoundError:
        raise UserError(f"{shown}: the manifest doesn't exist{_missing_hint(protocol, path)}") from None
    except IsADirectoryError:
        raise UserError(
            f"{shown}: this is a folder, not a manifest; make one from it with "
            f"`textinv manifest {shown} -o manifest.parquet`"
        ) from None
    except ImportError as error:
        raise UserError(f"{shown}: {protocol}:// needs another Python package: {error}") from None
    except Exception as error:
        raise UserError(f"{shown}: the manifest can't be read: {_reason(error)}") from None
    if size == 0:
        raise UserError(f"{shown}: the manifest is an empty file")
    try:
        return pq.ParquetFile(source)
    except pa.ArrowInvalid:
        raise UserError(
            f"{shown}: this is not a Parquet file (or a damaged one); "
            "pandas' DataFrame.to_parquet or `textinv manifest DIR` write one"
        ) from None
    except Exception as error:
        raise UserError(f"{shown}: the manifest can't be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return redact_text(str(error)) or type(error).__name__


def _missing_hint(protocol: str, path: str) -> str:
    if protocol not in ("", "file", "local"):
        return ""
    folder = Path(path).parent
    here = "" if os.path.isabs(path) else f" in {folder.resolve()}"
    if is_submitted_job() or runs_in_uploaded_folder():
        return (
            f"{here}. The job runs in a copy of the folder given to `ray job submit --working-dir`: put the "
            "manifest into that folder (.gitignore and .rayignore keep files out), or give a path or "
            "URI that the cluster's nodes can read"
        )
    found = sorted(file.name for file in folder.glob("*.parquet")) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, found, n=1, cutoff=0.5)
    return here + (f"; did you mean {str(folder / near[0])!r}?" if near else "")
