"""Training images: decodes what was fetched, and cuts it into squares."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from textinv_ray.concepts.colors import to_srgb
from textinv_ray.concepts.fetch import ImageError, fetch, name
from textinv_ray.config.job import DataConfig
from textinv_ray.manifest import image_files
from textinv_ray.manifest.kinds import ImageSource

_ONE_DECODER = threading.Lock()
"""Rows are prepared side by side, to wait for servers together. Decoding takes the one CPU that is reserved for it."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The images of one concept."""

    pixels: np.ndarray
    """uint8 (N, A, S, S, 3)."""
    uris: tuple[str, ...]
    """Where they came from, without credentials."""
    digests: tuple[str, ...]
    """SHA-256 of each file's bytes."""
    crops: tuple[tuple[tuple[int, int, int, int], ...], ...]
    """See `Concept.crops`: (N, A, 4)."""


def prepare(
    images: Sequence[ImageSource],
    *,
    base: str,
    config: DataConfig,
    resolution: int,
    seed: int,
    is_first_try: bool = False,
) -> Prepared:
    """Fetches, decodes and cuts a concept's images.

    `base`: the manifest's folder. `resolution`: side of the squares in pixels. `seed`: of random crops; their positions
    depend only on it, the image's index and the crop's index. `is_first_try`: see `fetch`. Raises ImageError for the
    first image that can't be used.
    """
    pixels, digests, places = [], [], []
    for index, image in enumerate(images):
        data = fetch(image, base=base, config=config, index=index, is_first_try=is_first_try)
        rng = np.random.default_rng([seed, index])
        centers = np.full((1, 2), 0.5) if config.crop == "center" else rng.random((config.variants, 2))
        uri = name(image, index, base)
        with _ONE_DECODER:
            decoded = decode(data, uri, config.max_image_pixels, near=resolution)
            pixels.append(crops(decoded, resolution, centers))
            places.append(crop_places(original_size(data), resolution, centers))
        digests.append(hashlib.sha256(data).hexdigest())
    uris = tuple(name(image, i, base) for i, image in enumerate(images))
    return Prepared(np.stack(pixels), uris, tuple(digests), tuple(places))


def decode(data: bytes, uri: str, max_pixels: int, near: int | None = None) -> Image.Image:
    """Decodes an image to sRGB: its first frame, its ICC profile and EXIF orientation applied, transparency over white,
    16 bits scaled to 8.

    `uri`: its name in errors. `near`: the side in pixels that it will be resized to; a large JPEG is then decoded at a
    reduced size. Raises ImageError.
    """
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=_formats())
    except Image.DecompressionBombError:
        raise ImageError(uri, f"has more than {max_pixels} pixels (data.max_image_pixels)") from None
    except Image.UnidentifiedImageError:
        why = image_files.why_not_an_image(data[: image_files.HEAD_BYTES])
        raise ImageError(uri, why or "is not an image of a known kind") from None
    except Exception as error:
        raise ImageError(uri, f"is damaged: {error or type(error).__name__}") from None
    width, height = image.size
    if width * height == 0:
        raise ImageError(uri, f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            uri, f"has {width} x {height} pixels, more than data.max_image_pixels allows ({max_pixels})"
        )
    try:
        if near:
            image.draft(None, (2 * near, 2 * near))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything
        raise ImageError(uri, f"is damaged: {error or type(error).__name__}") from None


def crops(image: Image.Image, size: int, centers: np.ndarray) -> np.ndarray:
    """Cuts squares from an RGB image and resizes them: uint8 (A, size, size, 3).

    The side of each is the image's shorter side. `centers`, (A, 2) in [0, 1]: position of each between left and right,
    and between top and bottom; 0.5 is the middle.
    """
    side = min(image.size)
    slack = np.array(image.size) - side
    squares = []
    for left, top in np.clip(centers, 0, 1) * slack:
        # The same as resizing the whole image and then cutting, without a huge result for an image of 1 x 10000.
        box = (float(left), float(top), float(left) + side, float(top) + side)
        squares.append(
            np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0))
        )
    return np.stack(squares)


def _formats() -> list[str]:
    """The formats that Pillow can read here, HEIF among them where pillow-heif is installed."""
    _register_decoders()
    return [name for name in image_files.FORMATS if name in Image.OPEN]


@cache
def _register_decoders() -> None:
    Image.init()
    if image_files.reads_heif():
        import pillow_heif

        pillow_heif.register_heif_opener()


def original_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of an image that `decode` accepts, with EXIF orientation applied."""
    image = Image.open(BytesIO(data), formats=_formats())
    width, height = image.size
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def crop_places(
    size: tuple[int, int], side: int, centers: np.ndarray
) -> tuple[tuple[int, int, int, int], ...]:
    """(A, 4) of `Concept.crops` for the squares that `crops` cuts. size: of the original, (width, height)."""
    width, height = size
    slack = np.array(size) * (side / min(size)) - side
    places = np.rint(np.clip(centers, 0, 1) * slack).astype(int).tolist()
    return tuple((height, width, top, left) for left, top in places)


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion clips everything above 255.
        levels = np.asarray(image).astype(np.float64) * (255 / 65535)
        image = Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))
        image.info["icc_profile"] = profile
        return to_srgb(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque_mode = "L" if image.mode in ("LA", "La", "L") else "RGB"
        image = image.convert("RGBA")
        opaque = image.convert(opaque_mode)
        opaque.info["icc_profile"] = profile
        colors = to_srgb(opaque).convert("RGBA")
        colors.putalpha(image.getchannel("A"))
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colors).convert("RGB")
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
        image.info["icc_profile"] = profile
    return to_srgb(image).convert("RGB")
