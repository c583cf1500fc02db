"""What a stored result is recognised by."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """Identifies the inputs of a result without reading an image: equal keys mean that it needn't be made again."""

    row_fingerprint: str
    """Digest of the row, the configuration and the model, with image URIs in place of image bytes."""
    images_mtime_digest: str
    """Digest of the sizes and modification times of local images; empty when none is local."""
