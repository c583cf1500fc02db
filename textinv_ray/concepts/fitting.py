"""How an image comes to the shape that the model sees: parts that are cut from it, or the whole in a padded square."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from textinv_ray.config.buckets import Shape

Place = tuple[int, int, int, int]
"""Of a crop the original height and width, and its top and left: see `Concept.crops`."""
Padding = tuple[int, int, int, int]
"""Pixels at the left, top, right and bottom of a square that aren't the image."""
GREY = (128, 128, 128)
"""Of the padding."""


def part(size: tuple[int, int], shape: Shape) -> tuple[float, float]:
    """(width, height) of the largest part of an image that has the shape's ratio of sides. size: (width, height)."""
    width, height = size
    if width * shape[0] <= height * shape[1]:
        return width, width * shape[0] / shape[1]
    return height * shape[1] / shape[0], height


def crops(image: Image.Image, shape: Shape, centers: np.ndarray) -> np.ndarray:
    """Cuts the largest parts of this ratio of sides from an RGB image and resizes them: uint8 (A, height, width, 3).

    `centers`, (A, 2) in [0, 1]: position of each between left and right, and between top and bottom; 0.5 is the middle.
    """
    parts = _parts(image, shape, centers, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.stack([np.asarray(part) for part in parts])


def mask_crops(mask: Image.Image, shape: Shape, centers: np.ndarray) -> np.ndarray:
    """The same parts of the image's mask, averaged by area: uint8 (A, height, width)."""
    parts = _parts(mask, shape, centers, Image.Resampling.BOX, reducing_gap=None)
    return np.stack([np.asarray(part) for part in parts])


def _parts(
    image: Image.Image,
    shape: Shape,
    centers: np.ndarray,
    filter: Image.Resampling,
    reducing_gap: float | None,
) -> Iterator[Image.Image]:
    width, height = part(image.size, shape)
    slack = np.array(image.size) - (width, height)
    for left, top in np.clip(centers, 0, 1) * slack:
        # The same as resizing the whole image and then cutting, without a huge result for an image of 1 x 10000.
        box = (float(left), float(top), float(left) + width, float(top) + height)
        box = (*box[:2], min(box[2], image.width), min(box[3], image.height))  # rounding
        yield image.resize((shape[1], shape[0]), filter, box, reducing_gap=reducing_gap)


def crop_places(size: tuple[int, int], shape: Shape, centers: np.ndarray) -> tuple[Place, ...]:
    """(A, 4) of `Concept.crops` for the parts that `crops` cuts. size: of the original, (width, height)."""
    width, height = size
    scale = max(shape[1] / width, shape[0] / height)
    slack = (np.array(size) * scale - (shape[1], shape[0])).clip(min=0)
    places = np.rint(np.clip(centers, 0, 1) * slack).astype(int).tolist()
    return tuple((height, width, top, left) for left, top in places)


def padding(size: tuple[int, int], side: int) -> Padding:
    """Where an image lies in a square, its longer side as long as the square's. size: of the image, (width, height)."""
    longer = max(size)
    width, height = (max(1, round(pixels * side / longer)) for pixels in size)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, side - width - left, side - height - top


def padded(image: Image.Image, side: int, around: Padding) -> np.ndarray:
    """A square with the image within the padding, which is grey, and black around a mask: uint8 (side, side[, 3])."""
    left, top, right, bottom = around
    is_mask = image.mode == "L"
    square = Image.new(image.mode, (side, side), 0 if is_mask else GREY)
    filter = Image.Resampling.BOX if is_mask else Image.Resampling.LANCZOS
    square.paste(image.resize((side - left - right, side - top - bottom), filter), (left, top))
    return np.asarray(square)
