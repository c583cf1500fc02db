"""Small pictures that are part of a page: tiles of the store's PNG grids as data: URIs."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterator

from PIL import Image

SIDE = 96
"""Pixels; larger tiles are shown smaller."""


def of_grid(grid: Image.Image, columns: int, count: int) -> tuple[str, ...]:
    """The first `count` tiles of a grid with so many columns, row by row, as data: URIs."""
    return tuple(map(_data_uri, itertools.islice(_tiles(grid, grid.width // max(1, columns)), count)))


def _tiles(grid: Image.Image, side: int) -> Iterator[Image.Image]:
    """Row by row, small."""
    if not side:  # fewer pixels than columns
        return
    for top in range(0, grid.height - side + 1, side):
        for left in range(0, grid.width - side + 1, side):
            tile = grid.crop((left, top, left + side, top + side))
            yield tile if side <= SIDE else tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
