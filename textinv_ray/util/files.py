"""Reads regular files, and nothing that might never end."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO


class NotAFileError(OSError):
    """A path that leads to something else than a regular file: a folder, a pipe, a socket, a device."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading; links are followed.

    Opens without waiting and looks at what was opened, so neither a pipe nor a device can hold the caller up. Raises
    OSError, and NotAFileError ("is a folder", "is not a regular file").
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotAFileError("is a folder" if stat.S_ISDIR(mode) else "is not a regular file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], limit: int = -1) -> bytes:
    """The first `limit` bytes of a regular file; -1: all. Raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read(limit)
