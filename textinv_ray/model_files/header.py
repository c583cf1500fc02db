"""The header of a safetensors file: names, shapes and places of its tensors, read without the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import fsspec

from textinv_ray.config.model_families import UnsupportedModelError

FIRST_READ = 1 << 20
"""Bytes of the first read. The header of an SDXL checkpoint has about 350 kB, so one read suffices."""
LONGEST = 100_000_000
"""Bytes that the safetensors format allows for a header."""
_PICKLES = (b"PK", b"\x80")  # a zip archive by torch.save, or a bare pickle


class TensorInfo(NamedTuple):
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    size: int
    """Of the file in bytes."""


def read_header(fs: fsspec.AbstractFileSystem, path: str, shown: str) -> Header:
    """The header of a file, by one small read (two where it is longer than FIRST_READ).

    shown: the path without credentials, for messages. Raises UnsupportedModelError for what isn't a whole safetensors
    file, and what the filesystem raises.
    """
    size = int(fs.size(path))
    data = fs.cat_file(path, start=0, end=min(size, FIRST_READ))
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(LONGEST, size - 8):
        if data.startswith(_PICKLES):
            raise UnsupportedModelError(
                f"the model {shown!r} is a pickle, which can run code when it is opened, so it is "
                "never read: take the .safetensors file of this model"
            )
        raise UnsupportedModelError(
            f"the model {shown!r} is not a safetensors file, or its download was cut off"
        )
    if len(data) < 8 + length:
        data += fs.cat_file(path, start=len(data), end=8 + length)
    try:
        entries = json.loads(data[8 : 8 + length])
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _info(entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UnsupportedModelError(
            f"the model {shown!r} is not a safetensors file: its header is damaged"
        ) from None
    promised = max((info.end for info in tensors.values()), default=8 + length)
    if promised != size:
        raise UnsupportedModelError(
            f"the model {shown!r} is damaged: by its header it has {promised:,} bytes, the file has {size:,}"
            + (" (a download that was cut off?)" if size < promised else "")
        )
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return Header(tensors, {key: value for key, value in texts if isinstance(value, str)}, size)


def _info(entry: Mapping[str, list[int]], data_start: int) -> TensorInfo:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, end)) or end < start:
        raise ValueError("not numbers")
    return TensorInfo(shape, data_start + start, data_start + end)
