"""Durable results over fsspec: the truth about a job. MLflow and `results.parquet` are views of it.

    OUTPUT/
      job.json                       configuration, versions, digest of the manifest
      concepts/<concept_id>/
        checkpoint.safetensors       while it runs: the task's whole state
        state.safetensors            when it is done: the same, to continue from with more steps
        learned_embeds.safetensors   what diffusers' load_textual_inversion reads
        history.parquet              a row per step: see history.py
        training.png, samples/step_<step>.png
        result.json                  written last: this is what "done" means
      failed/<concept_id>.json       why a concept was given up
      results.parquet, report.html

Files appear whole: local ones are written under a temporary name and renamed, objects are put in one request. Before
a file of a finished concept is replaced, its `result.json` is removed, so that a result always fits its files.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from textinv_ray.service.store import local_files
from textinv_ray.service.store.records import Failure, JobRecord, Result, SomeRecord, parse
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact, redact_text

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""Seconds for which a call is retried while the store throttles, resets connections or answers with 5xx."""
_BATCH = 512  # objects that are read at once: remote file systems fetch a batch concurrently
_WHY = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}

T = TypeVar("T")


class StoreError(UserError):
    """The store refuses a request, or was away for too long: nothing can be kept, so the job must stop."""

    def __init__(self, message: str, is_permanent: bool) -> None:
        """`is_permanent`: whether retrying can't help."""
        super().__init__(message)
        self.is_permanent = is_permanent


class Store:
    """The files of one output, a folder or URI. Many processes may open the same output.

    Calls are retried for `patience_s` seconds after transient errors. Then they raise StoreError; at once when
    retrying can't help: access denied, no such bucket, no space left.
    """

    def __init__(self, uri: str, patience_s: float = PATIENCE_S) -> None:
        """`uri`: a folder, or any fsspec URI (`s3://bucket/path`). Raises UserError for an unknown protocol."""
        self._patience_s = patience_s
        try:
            self.fs, root = fsspec.core.url_to_fs(str(uri))
        except (ValueError, ImportError) as error:
            raise UserError(f"the output {redact(str(uri))}: {redact_text(str(error))}") from None
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.uri = self.root if self.is_local else str(uri).rstrip("/")

    @property
    def shown(self) -> str:
        """The output's URI without credentials, for messages and logs."""
        return redact(self.uri)

    def path(self, *names: str) -> str:
        """The file system's own path of a file in this store."""
        return "/".join((self.root, *names))

    def read(self, name: str) -> bytes | None:
        """A file's bytes; none when it doesn't exist."""

        def read() -> bytes | None:
            try:
                if self.is_local:  # a third of the time that fsspec takes, which counts for 100,000 files
                    with open(self.path(name), "rb", buffering=0) as file:
                        return file.read()
                return bytes(self.fs.cat_file(self.path(name)))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

        return self._call(read, name)

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file, or nothing."""
        path = self.path(name)
        write = local_files.write if self.is_local else self.fs.pipe_file
        self._call(lambda: write(path, data), name)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a whole file unless there is one of this name. Returns whether it was written.

        Of several that try at once, one succeeds, where the file system can: local disks, memory, S3 and GCS can.
        Others may replace the file that is there, and say that they wrote it.
        """
        path = self.path(name)

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

        return self._call(create, name)

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name))

        self._call(remove, name)

    @contextlib.contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """Yields a local path to write a large file to. At the end, the file is moved or uploaded to the store."""
        beside = self.root if self.is_local else None
        try:
            with tempfile.TemporaryDirectory(dir=beside, prefix=".building-") as folder:
                path = Path(folder) / os.path.basename(name)
                yield path
                if self.is_local:
                    os.replace(path, self.path(name))
                else:
                    self._call(lambda: self.fs.put_file(str(path), self.path(name)), name)
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
        def entries() -> list[Any]:
            self.fs.invalidate_cache()
            try:
                return list(self.fs.ls(self.path(folder), detail=detail))
            except (FileNotFoundError, NotADirectoryError):
                return []

        return self._call(entries, folder)

    def _call(self, action: Callable[[], T], name: str) -> T:
        try:
            return retries.call(action, patience_s=self._patience_s, what=f"{self.shown}/{name}")
        except Exception as error:
            if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                raise  # not the store's: a mistake in this program
            raise self.refusal(name, error) from error

    def refusal(self, name: str, error: Exception) -> StoreError:
        """The StoreError for an error at a file of this store."""
        message = f"the output {self.shown}/{name}: {_why(error)}"
        return StoreError(message, not retries.is_transient(error))

    # Jobs

    def job(self) -> JobRecord | None:
        """job.json; none when it isn't there."""
        return _record(JobRecord, self.read("job.json"), "job.json")

    def write_job(self, job: JobRecord) -> None:
        """Writes job.json."""
        self.write("job.json", job.to_bytes())

    # Concepts while they are learned

    def read_concept(self, concept_id: str, name: str) -> bytes | None:
        """One of a concept's files."""
        return self.read(_concept(concept_id, name))

    def write_concept(self, concept_id: str, name: str, data: bytes) -> None:
        """Writes one of a concept's files."""
        self.write(_concept(concept_id, name), data)

    def states(self, concept_id: str) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of the states that learning may continue from, the newest first."""
        for name in ("checkpoint.safetensors", "state.safetensors"):
            data = self.read_concept(concept_id, name)
            if data is not None:
                yield name, data

    def checkpoint(self, concept_id: str, state: bytes, history: bytes) -> None:
        """Writes a running concept's checkpoint: the history first, which must have all steps of the state."""
        self.write_concept(concept_id, "history.parquet", history)
        self.write_concept(concept_id, "checkpoint.safetensors", state)

    def remove_checkpoint(self, concept_id: str) -> None:
        """Removes the checkpoint of a concept that has ended."""
        self.remove(_concept(concept_id, "checkpoint.safetensors"))

    # Concepts when they are over

    def finish(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Makes a concept done. `files`: name -> bytes, without samples, which are in the store already.

        Doing it twice, or two workers doing it at once, leaves the same result.
        """
        concept_id = result.concept_id
        self.remove(_concept(concept_id, "result.json"))
        for name, data in files.items():
            self.write_concept(concept_id, name, data)
        self.write_concept(concept_id, "result.json", result.to_bytes())
        self.remove_checkpoint(concept_id)
        self.remove(_failed(concept_id))
        kept = {sample_name(step) for step in result.sample_steps}
        for name in self.names(_concept(concept_id, "samples")):
            if f"samples/{name}" not in kept:
                self.remove(_concept(concept_id, f"samples/{name}"))

    def amend(self, result: Result) -> None:
        """Replaces the result.json of a concept that stays done."""
        self.write_concept(result.concept_id, "result.json", result.to_bytes())

    def fail(self, failure: Failure) -> None:
        """Records why a concept was given up, for now: the next run tries it again."""
        self.write(_failed(failure.concept_id), failure.to_bytes())

    def result(self, concept_id: str) -> Result | None:
        """A finished concept's result; none when it isn't done."""
        name = _concept(concept_id, "result.json")
        return _record(Result, self.read(name), name)

    def failure(self, concept_id: str) -> Failure | None:
        """Why a concept was given up; none when it wasn't."""
        name = _failed(concept_id)
        return _record(Failure, self.read(name), name)

    def results(self) -> Iterator[Result]:
        """Every finished concept's result, by concept_id."""
        names = (_concept(concept_id, "result.json") for concept_id in self.names("concepts"))
        return self._records(Result, names)

    def failures(self) -> Iterator[Failure]:
        """Every failure, by concept_id."""
        names = (f"failed/{name}" for name in self.names("failed") if name.endswith(".json"))
        return self._records(Failure, names)

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """(name, bytes or none) in order, a batch at a time."""
        for batch in _batches(names, _BATCH):
            if self.is_local:
                yield from ((name, self.read(name)) for name in batch)
                continue
            found = self.fs.cat([self.path(name) for name in batch], on_error="return")
            found = {path.lstrip("/"): data for path, data in found.items()}
            for name in batch:
                data = found.get(self.path(name).lstrip("/"))
                # After any other error the file may exist: it is read alone, with retries.
                is_absent = data is None or isinstance(data, FileNotFoundError)
                yield name, None if is_absent else data if isinstance(data, bytes) else self.read(name)

    def _records(self, kind: type[SomeRecord], names: Iterable[str]) -> Iterator[SomeRecord]:
        for name, data in self.read_many(names):
            found = _record(kind, data, name)
            if found is not None:
                yield found


def _why(error: Exception) -> str:
    """An error's reason, for a message."""
    if isinstance(error, PermissionError):
        reason = "access denied"
    elif isinstance(error, FileNotFoundError):
        reason = "it can't be written there; does the bucket exist?"
    else:
        reason = _WHY.get(getattr(error, "errno", None) or 0, type(error).__name__)
    return f"{reason} ({redact_text(str(error)).strip()})"


def sample_name(step: int) -> str:
    """Name of the file with a concept's samples at a step."""
    return f"samples/step_{step:07d}.png"


def _concept(concept_id: str, name: str) -> str:
    return f"concepts/{_checked(concept_id)}/{name}"


def _failed(concept_id: str) -> str:
    return f"failed/{_checked(concept_id)}.json"


def _checked(concept_id: str) -> str:
    """The id, if it names a folder inside the store. Raises ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", concept_id) or concept_id in (".", ".."):
        raise ValueError(f"concept_id {concept_id!r} can't name a folder")
    return concept_id


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


def _record(kind: type[SomeRecord], data: bytes | None, name: str) -> SomeRecord | None:
    """A record; a file that is damaged or something else counts as absent, with a warning."""
    if data is None:
        return None
    try:
        return parse(kind, data)
    except ValueError as error:
        logger.warning("%s can't be read and counts as absent: %s", name, error)
        return None


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
