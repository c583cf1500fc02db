"""The Parquet files that a manifest consists of: one, those of a folder or a prefix, or those that a glob matches.

Nothing but the footer of each file says what its columns are: neither its name nor the folders it lies in.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from textinv_ray.manifest.uris import locate
from textinv_ray.util import retries
from textinv_ray.util.errors import UnreachableError, UserError
from textinv_ray.util.files import NotAFileError, open_regular
from textinv_ray.util.protocols import why_unusable
from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.submitted_job import is_submitted_job, runs_in_uploaded_folder
from textinv_ray.util.text import one_line

SUFFIXES = (".parquet", ".parq", ".pq")
"""Endings of the names of a folder's parts. If no file has one, those without any ending are its parts."""
_RETRY_S = 60.0
_AT_ONCE = 16  # footers that are read side by side
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Part:
    """One Parquet file of a manifest."""

    uri: str
    """An absolute local path, or an fsspec URI."""
    label: str
    """What messages call it: without credentials."""
    name: str
    """Its path in the manifest's folder, for messages about rows; empty if the manifest is this one file."""
    num_rows: int
    schema: pa.Schema
    footer_digest: str
    """Digest of the footer. Another one means that the file was written anew."""

    @property
    def is_remote(self) -> bool:
        """Whether it lies in a store, and not on a file system."""
        return "://" in self.uri

    def open(self) -> pq.ParquetFile:
        """Opens the file again. Raises UserError if it can't be opened or was written anew."""
        file, digest = _parquet(self.uri, self.label)
        if digest != self.footer_digest:
            raise UserError(f"{self.label}: was written anew while it was being read; start again")
        return file


def find(uri: str) -> tuple[str, list[Part]]:
    """The folder that relative images start from, and the parts in the order of their names.

    `uri`: as the user gave it: a file, a folder, a prefix or a glob; a path or an fsspec URI. Raises UserError when
    there is none, and for files that are empty, unreadable or not Parquet.
    """
    if not uri.strip():
        raise UserError("the manifest's path is empty; was a variable of the shell not set?")
    try:
        protocol, location = locate(uri, os.getcwd())
    except ValueError as error:
        raise UserError(f"{redact(uri)}: {error}") from None
    try:
        found = _local(location) if protocol == "file" else _remote(location, protocol)
    except FileNotFoundError as error:
        if retries.is_transient(error):  # fsspec: a web server that refuses connections
            why = _reason(error.__cause__ or error)
            raise UserError(f"{redact(uri)}: the manifest can't be read: {why}") from None
        hint = _missing_hint(location, uri) if protocol == "file" else ""
        raise UserError(f"{redact(uri)}: the manifest doesn't exist{hint}") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{redact(uri)}: the manifest can't be read: {_reason(error)}") from None
    base, files = found
    if not files:
        raise UserError(
            f"{redact(uri)}: this is a folder, not a manifest; make one from it with "
            f"`textinv manifest {redact(uri)} -o manifest.parquet`"
        )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(
            pool.map(lambda file: _part(file[0], file[1], redact(file[0] if file[1] else uri)), files)
        )
    schemas: dict[pa.Schema, pa.Schema] = {}  # one object for equal ones: tasks get all parts
    return base, [replace(part, schema=schemas.setdefault(part.schema, part.schema)) for part in parts]


def _local(path: str) -> tuple[str, list[tuple[str, str]]]:
    """(folder, [(path, name of the part)]). Raises FileNotFoundError. An empty list: a folder without parts."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return path, _parts_in(path, _files_below(path))
    if not os.path.lexists(path) and _MAGIC.search(path):
        folder = _before_magic(path)
        found: list[tuple[str, str]] = []
        for match in sorted(glob.glob(path, recursive=True)):
            files = _parts_in(match, _files_below(match)) if os.path.isdir(match) else [(match, "")]
            found += [(file, os.path.relpath(file, folder)) for file, _ in files]
        if not found:
            raise FileNotFoundError
        return folder, list(dict.fromkeys(found))
    os.stat(path)
    return os.path.dirname(path), [(path, "")]


def _files_below(folder: str) -> Iterator[str]:
    return (posixpath.join(inner, name) for inner, _, names in os.walk(folder) for name in names)


def _remote(uri: str, protocol: str) -> tuple[str, list[tuple[str, str]]]:
    """As `_local`, of a URI. Raises FileNotFoundError, and what the store's library raises."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{redact(uri)}: the manifest can't be read: {why_unusable(protocol, error)}"
        ) from None

    def again(action: Callable[[], object]) -> object:
        return retries.call(action, patience_s=_RETRY_S, what=redact(uri))

    plain = uri.split("?", 1)[0] if protocol in ("http", "https") else uri
    single = plain.rpartition("/")[0], [(uri, "")]
    if protocol in ("http", "https"):
        again(lambda: filesystem.size(path))
        return single
    try:
        info = again(lambda: filesystem.info(path))
        assert isinstance(info, dict)
        if info.get("type") != "directory":
            return single
    except FileNotFoundError:
        if not _MAGIC.search(path):
            raise
        folder = _before_magic(path)
        matched = again(lambda: filesystem.glob(path, detail=True))
        assert isinstance(matched, dict)
        found: list[tuple[str, str]] = []
        for match, entry in sorted(matched.items()):
            below = (
                _parts_in(match, filesystem.find(match))
                if entry.get("type") == "directory"
                else [(match, "")]
            )
            found += [
                (filesystem.unstrip_protocol(file), file[len(folder) :].lstrip("/")) for file, _ in below
            ]
        if not found:
            raise
        return filesystem.unstrip_protocol(folder).rstrip("/"), list(dict.fromkeys(found))
    inside = again(lambda: filesystem.find(path))
    assert isinstance(inside, list)
    names = [(filesystem.unstrip_protocol(found), name) for found, name in _parts_in(path, inside)]
    return uri.rstrip("/"), names


def _before_magic(path: str) -> str:
    """The folder of a glob: what stands before the first part of the path with a magic character."""
    return path[: _MAGIC.search(path).start()].rpartition("/")[0] or ("/" if path.startswith("/") else ".")  # type: ignore[union-attr]


def _parts_in(root: str, files: Iterator[str] | list[str]) -> list[tuple[str, str]]:
    """(path, path in `root`) of the Parquet files among those below a folder, sorted.

    Left out, as Spark and others do: what lies below a name that begins with `_` or `.`.
    """
    names = [(path, path[len(root.rstrip("/")) :].lstrip("/")) for path in files]
    seen = sorted(
        (path, name)
        for path, name in names
        if not any(part.startswith(("_", ".")) for part in name.split("/"))
    )
    by_suffix = [(path, name) for path, name in seen if name.lower().endswith(SUFFIXES)]
    return by_suffix or [(path, name) for path, name in seen if "." not in posixpath.basename(name)]


def _part(uri: str, name: str, label: str) -> Part:
    file, digest = _parquet(uri, label)
    with file:
        try:
            return Part(uri, label, name, file.metadata.num_rows, file.schema_arrow, digest)
        except Exception as error:  # such as a type that Arrow doesn't know
            raise UserError(f"{label}: the manifest can't be read: {_reason(error)}") from None


def _parquet(uri: str, label: str) -> tuple[pq.ParquetFile, str]:
    """A Parquet file and the digest of its footer. Raises UserError that says what went wrong and what to do."""
    is_local = "://" not in uri
    try:
        source = _open(uri)
        size = source.seek(0, os.SEEK_END)
        digest = _footer_digest(source, size)
        if is_local:  # by itself Arrow reads faster than through a Python file
            source.close()
    except FileNotFoundError:
        raise UserError(f"{label}: the manifest doesn't exist") from None
    except NotAFileError as error:
        raise UserError(f"{label}: {error}") from None
    except Exception as error:
        kind = UserError if is_local or not retries.is_transient(error) else UnreachableError
        raise kind(f"{label}: the manifest can't be read: {_reason(error)}") from None
    if size == 0:
        raise UserError(f"{label}: the manifest is an empty file")
    try:
        return pq.ParquetFile(uri if is_local else source, page_checksum_verification=True), digest
    except pa.ArrowInvalid:
        raise UserError(
            f"{label}: this is not a Parquet file (or a damaged one); "
            "pandas' DataFrame.to_parquet or `textinv manifest DIR` write one"
        ) from None
    except Exception as error:
        raise UserError(f"{label}: the manifest can't be read: {_reason(error)}") from None


def _open(uri: str) -> BinaryIO:
    if "://" not in uri:
        return open_regular(uri)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    opened: BinaryIO = retries.call(
        lambda: filesystem.open(path, "rb"), patience_s=_RETRY_S, what=redact(uri)
    )
    return opened


def _footer_digest(source: BinaryIO, size: int) -> str:
    """Digest of a Parquet file's footer: its length and "PAR1" are the last 8 bytes."""
    source.seek(max(0, size - 8))
    length = int.from_bytes(source.read(4), "little")
    source.seek(max(0, size - 8 - length))
    return hashlib.sha256(source.read(min(size, 8 + length))).hexdigest()


def _reason(error: BaseException) -> str:
    return one_line(redact_text(str(error)), 300) or type(error).__name__


def _missing_hint(path: str, given: str) -> str:
    folder = Path(path).parent
    here = "" if os.path.isabs(given) or "://" in given else f" in {folder.resolve()}"
    if is_submitted_job() or runs_in_uploaded_folder():
        return (
            f"{here}. The job runs in a copy of the folder given to `ray job submit --working-dir`: put the "
            "manifest into that folder (.gitignore and .rayignore keep files out), or give a path or "
            "URI that the cluster's nodes can read"
        )
    found = sorted(file.name for file in folder.glob("*.parquet")) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, found, n=1, cutoff=0.5)
    nearest = str(Path(given).parent / near[0]) if near else ""
    return here + (f"; did you mean {nearest!r}?" if near else "")
