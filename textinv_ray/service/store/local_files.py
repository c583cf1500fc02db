"""Whole files on local disks: nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from typing import BinaryIO


class IrregularError(Exception):
    """A pipe, a socket or a device in place of a file: reading it may wait for ever, or never end."""


def read(path: str) -> bytes:
    """A file's bytes. Raises IrregularError, and OSError as `open` does."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str) -> BinaryIO:
    """Opens a file to read. Raises IrregularError for what isn't a file, and OSError as `open` does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    file: BinaryIO = os.fdopen(descriptor, "rb", buffering=0)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return file
    file.close()
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise IrregularError("it is not a regular file")


def write(path: str, data: bytes) -> None:
    """Writes a file, in place of one that is there. Raises OSError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _temporary(path, data) as temporary:
        os.replace(temporary, path)


def create(path: str, data: bytes) -> None:
    """Writes a file that isn't there yet. Raises FileExistsError if it is, OSError otherwise.

    fsspec's own way looks first and writes then, so two that create a file at once may both succeed.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:  # a file in place of the folder: the file to create isn't there
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with open(path, "xb") as file:
                file.write(data)


@contextlib.contextmanager
def _temporary(path: str, data: bytes) -> Iterator[str]:
    """The path of a file beside `path` with the data, which is gone afterwards."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)
