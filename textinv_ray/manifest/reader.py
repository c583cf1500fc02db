"""The manifest: a Parquet file with one row per concept.

    manifest = Manifest.open("manifest.parquet")
    checks.check(manifest, config, tokenizer)  # UserError with everything wrong, by row and column
    for row in manifest.rows(): ...

`COLUMNS` is the schema. What is checked within the rows stands in `manifest_checks`; making a manifest from
folders in `manifest_build`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from textinv_ray.manifest.problem import Problem, raise_problems
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.text import nearest

Kind = Literal["string", "integer", "number", "strings", "integers", "images", "tags"]

COLUMNS: dict[str, Kind] = {
    "concept_id": "string",
    "images": "images",
    "placeholder_token": "string",
    "initializer_token": "string",
    "learnable_property": "string",
    "num_vectors": "integer",
    "steps": "integer",
    "learning_rate": "number",
    "batch_size": "integer",
    "seed": "integer",
    "templates": "strings",
    "captions": "strings",
    "prompts": "strings",
    "tags": "tags",
    "init_from": "string",
    "vectors_added_at": "integers",
    "regularization_weight": "number",
    "per_image_probability": "number",
    "norm_control": "string",
    "norm_weight": "number",
}
"""Known columns and their kinds. Only the first two must be there; a null means the default."""
REQUIRED = ("concept_id", "images")
_EXPECTED: dict[Kind, str] = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "strings": "list of strings",
    "integers": "list of integers",
    "images": "list of strings (URIs) or list of {bytes, path} structs",
    "tags": "map of strings, or struct",
}
_PATIENCE_S = 60.0  # a store with manifests may be away for so long
_BATCH_ROWS = 8192
_BATCH_ROWS_WITH_BYTES = 16


@dataclass(frozen=True)
class Manifest:
    """An opened manifest. Reading streams; nothing but the footer is held."""

    uri: str
    """As the user gave it."""
    base: str
    """The folder that relative image URIs start from: an absolute path or a URI."""
    num_rows: int
    """Number of concepts."""
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
        """Missing, unknown and mistyped columns."""
        problems = [
            Problem(None, None, name, f"is missing; expected: {_EXPECTED[COLUMNS[name]]}")
            for name in REQUIRED
            if name not in self.schema.names
        ]
        for name, count in (
            (name, self.schema.names.count(name)) for name in dict.fromkeys(self.schema.names)
        ):
            if name not in COLUMNS:
                if not _is_pandas_index(name):
                    near = nearest(name, list(COLUMNS))
                    known = "" if near else f" (known: {', '.join(COLUMNS)})"
                    problems.append(Problem(None, None, name, f"is not a column of a manifest{near}{known}"))
            elif count > 1:
                problems.append(Problem(None, None, name, f"is there {count} times; keep one"))
            elif not _is_kind(self.schema.field(name).type, COLUMNS[name]):
                found = self.schema.field(name).type
                expected = _EXPECTED[COLUMNS[name]]
                problems.append(Problem(None, None, name, f"has the type {found}; expected: {expected}"))
        return problems

    def sound_columns(self) -> list[str]:
        """Known columns whose type is right."""
        wrong = {problem.column for problem in self.schema_problems()}
        return [name for name in COLUMNS if name in self.schema.names and name not in wrong]

    def batches(self, columns: list[str], *, image_bytes: bool = False) -> Iterator[pa.RecordBatch]:
        """The named columns in the file's order. `image_bytes=False` leaves embedded images unread
        where their `path` tells how many there are."""
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

    def rows(self, *, image_bytes: bool = True) -> Iterator[dict[str, Any]]:
        """Plain rows (see `plain_row`) in the file's order, a few at a time in memory."""
        for batch in self.batches(self.sound_columns(), image_bytes=image_bytes):
            for row in batch.to_pylist():
                yield plain_row(row)

    def count_images(self) -> int:
        """Images of all rows."""
        import pyarrow.compute as pc

        lengths = (
            pc.sum(pc.list_value_length(batch.column(0))).as_py() for batch in self.batches(["images"])
        )
        return sum(length or 0 for length in lengths)


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of any reader (pyarrow, Ray Data) as plain Python: known columns with a value only.

    Lists are lists, `images` holds str or {"bytes", "path"}, `tags` is a dict of str.
    """
    plain: dict[str, Any] = {}
    for name, kind in COLUMNS.items():
        value = row.get(name)
        if value is None or (kind in ("strings", "tags") and len(value) == 0):
            continue  # An empty list of integers says something: no vectors, whatever the configuration adds.
        if kind == "string":
            plain[name] = str(value)
        elif kind == "integer":
            plain[name] = _whole(name, value)
        elif kind == "integers":
            plain[name] = [_whole(name, item) for item in value]
        elif kind == "number":
            plain[name] = float(value)
        elif kind == "tags":
            items = value.items() if isinstance(value, Mapping) else value
            plain[name] = {str(key): str(item) for key, item in items if item is not None}
        else:
            plain[name] = list(value)
    return plain


def _whole(name: str, value: Any) -> int:
    if int(value) != value:
        raise ValueError(f"{name} must be a whole number, not {value}")
    return int(value)


def _is_kind(found: pa.DataType, kind: Kind) -> bool:
    if types.is_null(found):
        return True
    if kind == "string":
        return _is_string(found)
    if kind == "integer":  # pandas writes integers with gaps as floats; the rows must hold whole numbers
        return types.is_integer(found) or types.is_floating(found)
    if kind == "number":
        return types.is_integer(found) or types.is_floating(found)
    if kind == "tags":
        if types.is_map(found):
            return _is_string(found.key_type) and _is_scalar(found.item_type)
        return types.is_struct(found) and all(_is_scalar(field.type) for field in found)
    if not (types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)):
        return False
    element = found.value_type
    if kind == "integers":
        return types.is_null(element) or types.is_integer(element)
    if types.is_null(element) or _is_string(element):
        return True
    return kind == "images" and types.is_struct(element) and _is_image_struct(element)


def _is_image_struct(found: pa.StructType) -> bool:
    fields = {field.name: field.type for field in found}
    if not fields or not set(fields) <= {"bytes", "path"}:
        return False
    data, path = fields.get("bytes", pa.null()), fields.get("path", pa.null())
    return (types.is_null(data) or types.is_binary(data) or types.is_large_binary(data)) and (
        types.is_null(path) or _is_string(path)
    )


def _is_string(found: pa.DataType) -> bool:
    if types.is_dictionary(found):
        found = found.value_type
    return types.is_string(found) or types.is_large_string(found)


def _is_scalar(found: pa.DataType) -> bool:
    return not types.is_nested(found) and not types.is_binary(found) and not types.is_large_binary(found)


def _is_pandas_index(name: str) -> bool:
    return name.startswith("__index_level_")


def _base(uri: str) -> str:
    """The manifest's folder. Local: an absolute path, since workers have another working directory."""
    protocol, separator, path = uri.rpartition("://")
    if protocol in ("", "file", "local"):
        return os.path.dirname(os.path.abspath(path))
    return protocol + separator + path.split("?", 1)[0].rpartition("/")[0]


def _open_parquet(uri: str) -> pq.ParquetFile:
    """Raises UserError with what to do for each way in which this can fail."""
    shown = redact(uri)
    protocol, _, path = uri.rpartition("://")
    try:
        if protocol in ("", "file", "local"):
            size = os.stat(path).st_size
            if os.path.isdir(path):
                raise IsADirectoryError
            source: Any = path
        else:
            import fsspec

            filesystem, remote = fsspec.core.url_to_fs(uri)
            size = retries.call(lambda: filesystem.size(remote), patience_s=_PATIENCE_S, what=shown)
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
    if _in_submitted_job():
        return (
            f"{here}. The job runs in a copy of the folder given to `ray job submit --working-dir`: put the "
            "manifest into that folder (.gitignore and .rayignore keep files out), or give a path or "
            "URI that the cluster's nodes can read"
        )
    found = sorted(file.name for file in folder.glob("*.parquet")) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, found, n=1, cutoff=0.5)
    return here + (f"; did you mean {str(folder / near[0])!r}?" if near else "")


def _in_submitted_job() -> bool:
    """Whether a `ray job submit` started this process, or it runs in an uploaded working directory."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "runtime_resources" in Path.cwd().parts
