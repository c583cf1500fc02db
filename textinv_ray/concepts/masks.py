"""Masks: which part of a training image is the concept. White is, black isn't, grey lies between.

They are cut as their images are, and become weights of the loss in `inversion/pixel_weights.py`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops

from textinv_ray.concepts.fetch import ImageError

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


class MaskError(ImageError):
    """A mask can't be used. As an image that can't, it fails only its own concept."""

    what = "mask"

    @classmethod
    def of(cls, error: ImageError) -> MaskError:
        """What `images` and `fetch` say of an image, said of a mask."""
        return cls(error.uri, error.reason, is_transient=error.is_transient)


def levels(image: Image.Image) -> Image.Image:
    """A mask as 8-bit grey levels (mode L): its brightness times its opacity; 16 bits are scaled to 8.

    Colour profiles don't count. Raises ValueError for pixels of 32 bits, which have no known range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        scaled = np.asarray(image).astype(np.float64) * (255 / 65535)
        return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; convert it to 8 or 16 bits")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        opaque = image.convert("RGBA")
        return ImageChops.multiply(opaque.convert("L"), opaque.getchannel("A"))
    return image.convert("L")


def of_alpha(image: Image.Image) -> Image.Image | None:
    """An image's opacity as a mask (mode L); None for an image without transparency."""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def check(mask: Image.Image, uri: str, size: tuple[int, int], image_uri: str) -> None:
    """Raises MaskError for a mask that is of another size than its image, or has nothing above black.

    `uri`, `image_uri`: names of both in messages. `size`: (width, height) of the image.
    """
    if mask.size != size:
        raise MaskError(
            uri,
            f"has {_pixels(mask.size)} pixels, but its image {image_uri} {_pixels(size)}: "
            "save the mask at the image's size, turned as the image is",
        )
    if not mask.getbbox():
        raise MaskError(
            uri, f"is empty, all of it is black: paint the concept white in it, or give null for {image_uri}"
        )


def around(mask: Image.Image, part: tuple[float, float], centers: np.ndarray) -> np.ndarray:
    """Moves parts that are cut from an image so that they show what the mask has: all of it where it fits.

    `part`: (width, height) in the mask's pixels, at most its size. `centers`: (A, 2) in [0, 1], see `images.crops`.
    Returns such centers; (0, 1) of `centers` become the first and the last place that shows it.
    """
    box = mask.getbbox()
    assert box is not None  # by `check`
    moved = []
    for axis in range(2):
        slack = mask.size[axis] - part[axis]
        if slack <= 0:
            moved.append(centers[:, axis])
            continue
        low, high = np.clip(sorted((box[axis], box[axis + 2] - part[axis])), 0, slack)
        moved.append((low + centers[:, axis] * (high - low)) / slack)
    return np.stack(moved, axis=1)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
