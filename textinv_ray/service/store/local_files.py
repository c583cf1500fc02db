"""Whole files on local disks: nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator


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
