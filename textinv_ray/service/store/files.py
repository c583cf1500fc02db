"""Files of an output over fsspec: read, written whole, listed; retried while the storage is away."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from textinv_ray.service import metrics
from textinv_ray.service.store import local_files
from textinv_ray.service.store.places import checked_name, leads_out
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError
from textinv_ray.util.files import NotAFileError, open_regular, read_regular
from textinv_ray.util.protocols import why_unusable
from textinv_ray.util.redact import message, redact
from textinv_ray.util.text import one_line

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""Seconds for which a call is retried while the store throttles, resets connections or answers with 5xx."""
_BATCH = 512  # objects that are read at once: remote file systems fetch a batch concurrently
_WHY = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


class StoreError(UserError):
    """The store refuses a request, or was away for too long: nothing can be kept, so the job must stop."""

    def __init__(self, message: str, is_permanent: bool) -> None:
        """`is_permanent`: whether retrying can't help."""
        super().__init__(message)
        self.is_permanent = is_permanent


class Files:
    """The files of one output, a folder or URI. Many processes may open the same output.

    Calls are retried for `patience_s` seconds after transient errors. Then they raise StoreError; at once when
    retrying can't help: access denied, no such bucket, no space left.
    """

    def __init__(self, uri: str, patience_s: float = PATIENCE_S) -> None:
        """`uri`: a folder, or any fsspec URI (`s3://bucket/path`). Raises UserError for an unknown protocol."""
        if not str(uri).strip():
            raise UserError("the path of an output is empty: is a shell variable unset?")
        self._patience_s = patience_s
        self._ignored: set[str] = set()
        """Names that were warned of."""
        try:
            self.fs, root = fsspec.core.url_to_fs(str(uri))
        except (ValueError, ImportError) as error:
            protocol = one_line(str(uri).partition("://")[0], 100)
            raise UserError(
                f"the output {one_line(redact(str(uri)))}: {why_unusable(protocol, error)}"
            ) from None
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.uri = self.root if self.is_local else str(uri).rstrip("/")

    @property
    def shown(self) -> str:
        """The output's URI without credentials, for messages and logs."""
        return redact(self.uri)

    def path(self, *names: str) -> str:
        """The file system's own path of a file in this store. Raises OutsideError for a name that leads out of it."""
        return "/".join((self.root, *map(checked_name, names)))

    def _readable(self, name: str) -> bool:
        """Whether a file may be read: not if a link leads out of a local store, which is warned of."""
        if self.is_local and leads_out(self.root, checked_name(name)):
            self.ignore(name, "a link leads out of the output")
            return False
        return True

    def _writable_path(self, name: str) -> str:
        """The path of a file to write. Raises StoreError when a link leads out of a local store."""
        folder = name.rpartition("/")[0]
        if self.is_local and folder and leads_out(self.root, folder):
            raise StoreError(f"{self.shown}/{folder}: a link leads out of the output", is_permanent=True)
        return self.path(name)

    def ignore(self, name: str, why: str) -> None:
        """Warns, once, that a file or folder of the store counts as absent."""
        if name not in self._ignored:
            self._ignored.add(name)
            logger.warning("%s", one_line(f"{self.shown}/{name} counts as absent: {why}"))

    def read(self, name: str) -> bytes | None:
        """A file's bytes; none when it doesn't exist."""

        path = self.path(name)
        # A third of the time that fsspec takes, which counts for 100,000 files
        return self._if_there(
            lambda: read_regular(path) if self.is_local else bytes(self.fs.cat_file(path)), name
        )

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO | None]:
        """A file to read parts of; none when it doesn't exist. Raises StoreError."""
        path = self.path(name)
        file: BinaryIO | None = self._if_there(
            lambda: open_regular(path) if self.is_local else self.fs.open(path, "rb"), name
        )
        with contextlib.nullcontext() if file is None else file:
            yield file

    def _if_there(self, action: Callable[[], T], name: str) -> T | None:
        """What `action` reads of a file; none when there is no such file, or something else than a file."""

        def read() -> T | None:
            try:
                return action()
            except _ABSENT as error:
                if retries.is_transient(error):  # fsspec: a web server that refuses connections
                    raise
                return None
            except NotAFileError as error:
                self.ignore(name, f"it {error}")
                return None

        return self._call(read, name, "read") if self._readable(name) else None

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file, or nothing."""
        path = self._writable_path(name)
        write = local_files.write if self.is_local else self.fs.pipe_file
        self._call(lambda: write(path, data), name, "write")

    def local_file(self, name: str) -> Path:
        """Where to append to a file of a local store. Makes the folder of the store. Raises StoreError."""
        path = Path(self._writable_path(name))
        try:
            os.makedirs(self.root, exist_ok=True)
            if leads_out(self.root, name) or (path.exists() and not path.is_file()):
                raise StoreError(f"{self.shown}/{name}: it is not a regular file", is_permanent=True)
            if path.exists():
                path.open("ab").close()
        except OSError as error:
            raise self.refusal(name, error) from error
        return path

    def check_writable(self) -> None:
        """Raises StoreError for a store in which nothing can be written.

        Of a local one the permissions are looked at. Others can't be asked: a file is written and removed.
        """
        if not self.is_local:
            name = f"write-test-{uuid.uuid4().hex}.tmp"
            self.write(name, b"")
            self.remove(name)
            return
        folder = next(path for path in (Path(self.root), *Path(self.root).parents) if path.exists())
        if not folder.is_dir():
            raise StoreError(f"the output {self.shown}: {folder} is a file", is_permanent=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreError(f"the output {self.shown}: {folder} can't be written to", is_permanent=True)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a whole file unless there is one of this name. Returns whether it was written.

        Of several that try at once, one succeeds, where the file system can: local disks, memory, S3 and GCS can.
        Others may replace the file that is there, and say that they wrote it.
        """
        path = self._writable_path(name)

        def create() -> bool:
            try:
                if self.is_local:
                    local_files.create(path, data)
                else:
                    self.fs.pipe_file(path, data, mode="create")
                return True
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError):  # the file system's class knows no such mode
                self.fs.pipe_file(path, data)
                return True
            except OSError as error:
                if error.errno == errno.ENOSYS:  # s3fs: a server that knows no conditional requests
                    self.fs.pipe_file(path, data)
                    return True
                # s3fs: the same errno as for other requests that aren't valid
                if error.errno != errno.EINVAL or self.read(name) is None:
                    raise
                return False

        return self._call(create, name, "create")

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""

        path = self._writable_path(name)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)

        self._call(remove, name, "remove")

    @contextlib.contextmanager
    def without_empty_folders(self) -> Iterator[None]:
        """Removes, in the end, the folders of a local output that weren't there before and that nothing was put in."""
        folders = (Path(self.root), *Path(self.root).parents) if self.is_local else ()
        missing = [folder for folder in folders if not folder.exists()]
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # something is in it
                for folder in missing:
                    folder.rmdir()

    @contextlib.contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """Yields a local path to write a large file to. At the end, the file is moved or uploaded to the store."""
        beside, target = self.root if self.is_local else None, self._writable_path(name)
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(target), exist_ok=True)
            with tempfile.TemporaryDirectory(dir=beside, prefix=".building-") as folder:
                path = Path(folder) / os.path.basename(name)
                yield path
                if self.is_local:
                    os.replace(path, target)
                else:
                    self._call(lambda: self.fs.put_file(str(path), target), name, "write")
        except OSError as error:
            raise self.refusal(name, error) from error

    def names(self, folder: str) -> list[str]:
        """Sorted names of what lies in a folder of the store; empty when there is none."""
        return sorted({_last(entry) for entry in self._list(folder, detail=False)} - {""})

    def times(self, *folder: str) -> dict[str, float]:
        """Names of the files in a folder -> when each was written, in seconds since 1970."""
        entries = self._list("/".join(folder), detail=True)
        return {_last(entry["name"]): _time(entry) for entry in entries if entry["type"] == "file"}

    def _list(self, folder: str, *, detail: bool) -> list[Any]:
        path = self.path(folder)

        def entries() -> list[Any]:
            self.fs.invalidate_cache()
            try:
                return list(self.fs.ls(path, detail=detail))
            except (FileNotFoundError, NotADirectoryError) as error:
                if retries.is_transient(error):
                    raise
                return []

        return self._call(entries, folder, "list") if self._readable(folder) else []

    def _call(self, action: Callable[[], T], name: str, operation: str) -> T:
        """`action()`, with retries. `name`: of the file. `operation`: what it is in the metrics."""
        tries = 0

        def tried() -> T:
            nonlocal tries
            tries += 1
            return action()

        try:
            with metrics.STORE_SECONDS.timed(operation=operation):
                return retries.call(tried, patience_s=self._patience_s, what=f"{self.shown}/{name}")
        except Exception as error:
            if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                raise  # not the store's: a mistake in this program
            raise self.refusal(name, error) from error
        finally:
            metrics.RETRIES.add(tries - 1, target="store")

    def refusal(self, name: str, error: Exception) -> StoreError:
        """The StoreError for an error at a file of this store."""
        message = f"the output {self.shown}/{name}: {_why(error)}"
        return StoreError(message, not retries.is_transient(error))

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """(name, bytes or none) in order, a batch at a time."""
        for batch in _batches(names, _BATCH):
            if self.is_local:
                yield from ((name, self.read(name)) for name in batch)
                continue
            # Unlike `cat`, it takes no path for a pattern
            paths = [self.path(name) for name in batch]
            found = self.fs.cat_ranges(paths, [None] * len(paths), [None] * len(paths), on_error="return")
            for name, data in zip(batch, found, strict=True):
                # After any other error the file may exist: it is read alone, with retries.
                is_absent = isinstance(data, FileNotFoundError)
                yield name, None if is_absent else data if isinstance(data, bytes) else self.read(name)


def _why(error: Exception) -> str:
    """An error's reason, for a message."""
    if isinstance(error, PermissionError):
        reason = "access denied"
    elif isinstance(error, FileNotFoundError):
        reason = "it can't be written there; does the bucket exist?"
    else:
        reason = _WHY.get(getattr(error, "errno", None) or 0, type(error).__name__)
    return f"{reason} ({message(str(error))})"


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _time(entry: Mapping[str, Any]) -> float:
    """When a file was written. fsspec's file systems name it differently: local disk, S3, GCS, memory."""
    for name in ("mtime", "LastModified", "updated", "last_modified", "created"):
        value = entry.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
