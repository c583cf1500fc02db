"""Pictures in the store, as PNG grids."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

TRAINING_COLUMNS = 3
"""Of the grid in training.png: MLflow shows pictures in a narrow box, in which a long strip is hard to see."""
_TRAINING_SIDE = 256  # pixels; larger training images are shown smaller


def sample_grid(samples: Mapping[str, np.ndarray]) -> bytes:
    """PNG: a row per prompt, a column per seed. samples: prompt -> uint8 (n, H, W, 3)."""
    return png(np.concatenate([np.concatenate(list(images), axis=1) for images in samples.values()], axis=0))


def training_grid(images: np.ndarray) -> bytes:
    """PNG: the first crop of each training image, in rows of TRAINING_COLUMNS. images: uint8 (N, A, S, S, 3)."""
    side = min(images.shape[2], _TRAINING_SIDE)
    small = [Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS) for image in images[:, 0]]
    columns = min(len(small), TRAINING_COLUMNS)
    grid = Image.new("RGB", (columns * side, -(-len(small) // columns) * side), "white")
    for index, image in enumerate(small):
        grid.paste(image, (index % columns * side, index // columns * side))
    return png(np.asarray(grid))


def training_images(grid: bytes, count: int) -> np.ndarray:
    """The inverse of `training_grid`, at its size: uint8 (count, s, s, 3). Raises ValueError."""
    try:
        pixels = np.asarray(Image.open(io.BytesIO(grid)).convert("RGB"))
    except OSError as error:
        raise ValueError(f"training.png can't be read: {error}") from None
    columns = min(count, TRAINING_COLUMNS)
    side = pixels.shape[1] // columns
    tiles = pixels.reshape(-1, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    return np.ascontiguousarray(tiles[:count])


def png(image: np.ndarray) -> bytes:
    """A PNG file of a uint8 (H, W, 3) picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
