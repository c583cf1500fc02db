"""Pictures in the store, as PNG grids."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from PIL import Image

TRAINING, HELDOUT = "training.png", "heldout.png"
"""Files of a concept with the images that it is learned from, and with those that are held out (`data.holdout`)."""
TRAINING_COLUMNS = 3
"""Of the grid in training.png: MLflow shows pictures in a narrow box, in which a long strip is hard to see."""
_TRAINING_SIDE = 256  # pixels; larger training images are shown smaller
TRAINING_PIXELS = 60_000_000
"""Of the whole grid in training.png: with more than 900 images, each is smaller."""
_BEGIN, _END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_LARGEST = (
    1_000_000_000  # pixels of a picture that is read back; sample grids are at most 64 x 4096 pixels wide
)


def sample_grid(samples: Mapping[str, np.ndarray]) -> bytes:
    """PNG: a row per prompt, a column per seed. samples: prompt -> uint8 (n, H, W, 3)."""
    return png(np.concatenate([np.concatenate(list(images), axis=1) for images in samples.values()], axis=0))


def training_grid(images: np.ndarray) -> bytes:
    """PNG: the middle square of each training image's first crop, in rows of TRAINING_COLUMNS.

    images: uint8 (N, A, H, W, 3).
    """
    height, width = images.shape[2:4]
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    squares = images[:, 0, top : top + shorter, left : left + shorter]
    side = min(shorter, _TRAINING_SIDE, max(1, math.isqrt(TRAINING_PIXELS // len(images))))
    small = [Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS) for image in squares]
    columns = min(len(small), TRAINING_COLUMNS)
    grid = Image.new("RGB", (columns * side, -(-len(small) // columns) * side), "white")
    for index, image in enumerate(small):
        grid.paste(image, (index % columns * side, index // columns * side))
    return png(np.asarray(grid))


def training_images(grid: bytes, count: int, name: str = TRAINING) -> np.ndarray:
    """The inverse of `training_grid`, at its size: uint8 (count, s, s, 3). Raises ValueError, which names `name`."""
    try:
        pixels = np.asarray(opened(grid).convert("RGB"))
    except ValueError as error:
        raise ValueError(f"{name} can't be read: {error}") from None
    columns = min(count, TRAINING_COLUMNS)
    side, rows = pixels.shape[1] // max(1, columns), -(-count // max(1, columns))
    if not side or pixels.shape[:2] != (rows * side, columns * side):
        raise ValueError(f"{name} is no grid of {count} images")
    tiles = pixels.reshape(-1, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    return np.ascontiguousarray(tiles[:count])


def opened(data: bytes) -> Image.Image:
    """A stored picture, decoded. Raises ValueError when it is damaged, or larger than any that is written."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.width * image.height > _LARGEST:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        image.load()
    except ValueError:
        raise
    except Exception as error:  # Pillow: OSError, SyntaxError, struct.error, DecompressionBombError, ...
        raise ValueError(f"it is no picture, or damaged ({type(error).__name__})") from None
    return image


def is_whole(file: BinaryIO) -> bool:
    """Whether a PNG file begins and ends as one, which costs two short reads."""
    if file.read(len(_BEGIN)) != _BEGIN or file.seek(0, io.SEEK_END) < len(_BEGIN) + len(_END):
        return False
    file.seek(-len(_END), io.SEEK_END)
    return file.read() == _END


def png(image: np.ndarray) -> bytes:
    """A PNG file of a uint8 (H, W, 3) picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
