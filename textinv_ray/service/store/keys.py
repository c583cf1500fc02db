"""What a stored result is recognised by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Key(NamedTuple):
    """What a result is recognised by without reading an image."""

    row_fingerprint: str
    images_mtime_digest: str
    """See `concepts.images.LocalFiles.mtime_digest`."""


def key_of(result: Mapping[str, Any]) -> Key:
    """The key that a result.json was made for."""
    return Key(result["row_fingerprint"], result["images_mtime_digest"])
