"""Columns with files in them, images and masks, and the Arrow schema that has either their URIs or their bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.manifest.kinds import EMBEDDED_IMAGES, IMAGES, MASKS

IMAGE_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.kind in (IMAGES, MASKS))
"""Columns of images and masks: their values are URIs or bytes."""


def schema(embedded: Collection[str]) -> pa.Schema:
    """Arrow schema of a manifest with all columns. `embedded`: those of `IMAGE_COLUMNS` with {bytes, path}, no URIs."""
    kinds = {name: column.kind.arrow for name, column in COLUMNS.items()}
    return pa.schema({**kinds, **dict.fromkeys(embedded, EMBEDDED_IMAGES)})


def embedded_columns(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Those of `IMAGE_COLUMNS` in which an image of the rows isn't a URI."""
    return {
        name
        for row in rows
        for name in IMAGE_COLUMNS
        if any(not isinstance(image, str | None) for image in row.get(name) or ())
    }
