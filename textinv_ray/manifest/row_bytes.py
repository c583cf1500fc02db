"""Rows as bytes: what the reader found in a row, on its way to the process that prepares it.

As a column of bytes, a row passes Ray Data as it is. Ray would infer types of its own from the values.
"""

from __future__ import annotations

import json
from typing import Literal, cast

from textinv_ray.manifest.columns import Row
from textinv_ray.manifest.kinds import EmbeddedImage

_IMAGES: tuple[Literal["images", "masks"], ...] = ("images", "masks")
"""Columns whose values may have bytes."""


def encode(row: Row) -> bytes:
    """The row: the length of a JSON header, the header with all values, and the bytes of embedded images and masks."""
    blobs: list[bytes] = []
    without: dict[str, object] = {}
    for name in _IMAGES:
        images: list[object] = []
        for image in row.get(name, ()):
            if image is None or isinstance(image, str):
                images.append(image)
                continue
            data = image.get("bytes")
            if data is not None:
                blobs.append(data)
            lengths = {"bytes": None if data is None else len(data)} if "bytes" in image else {}
            images.append({**image, **lengths})
        if name in row:
            without[name] = images
    text = json.dumps({**row, **without}).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *blobs])


def decode(data: bytes) -> Row:
    """The inverse of `encode`."""
    end = 8 + int.from_bytes(data[:8], "little")
    row = json.loads(data[8:end])
    for name in _IMAGES:
        for image in row.get(name, ()):
            if isinstance(image, dict) and image.get("bytes") is not None:
                start, end = end, end + image["bytes"]
                cast(EmbeddedImage, image)["bytes"] = data[start:end]
    return cast(Row, row)
