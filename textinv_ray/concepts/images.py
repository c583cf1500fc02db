"""Training images and their masks: decodes what was fetched, and brings it to one shape."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from textinv_ray.concepts import fitting
from textinv_ray.concepts import masks as mask_images
from textinv_ray.concepts.colors import to_srgb
from textinv_ray.concepts.fetch import ImageError, fetch, name
from textinv_ray.concepts.fitting import Padding, Place
from textinv_ray.concepts.masks import MaskError
from textinv_ray.config import buckets
from textinv_ray.config.buckets import Shape
from textinv_ray.config.job import DataConfig
from textinv_ray.manifest import image_files
from textinv_ray.manifest.kinds import ImageSource

Made = TypeVar("Made")
_ONE_DECODER = threading.Lock()
"""Rows are prepared side by side, to wait for servers together. Decoding takes the one CPU that is reserved for it."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The images of one concept."""

    pixels: np.ndarray
    """uint8 (N, A, H, W, 3)."""
    uris: tuple[str, ...]
    """Where they came from, without credentials."""
    digests: tuple[str, ...]
    """SHA-256 of each file's bytes."""
    crops: tuple[tuple[Place, ...], ...]
    """See `Concept.crops`: (N, A, 4)."""
    masks: np.ndarray | None = None
    """See `Concept.masks`: uint8 (N, A, H, W)."""
    mask_digests: tuple[str, ...] = ()
    """SHA-256 of the bytes of each mask of the column `masks`; empty for an image without."""
    paddings: tuple[Padding, ...] = ()
    """See `Concept.paddings`."""


@dataclass(frozen=True)
class _Files:
    """An image's file and that of its mask."""

    uri: str
    data: bytes
    mask_uri: str = ""
    mask: bytes | None = None


@dataclass(frozen=True, eq=False)
class _Cut:
    """What is cut from one image, A times."""

    pixels: np.ndarray
    places: tuple[Place, ...]
    mask: np.ndarray | None = None
    padding: Padding = (0, 0, 0, 0)


def prepare(
    images: Sequence[ImageSource],
    *,
    base: str,
    config: DataConfig,
    resolution: int,
    seed: int,
    is_first_try: bool = False,
    masks: Sequence[ImageSource | None] = (),
    side_multiple: int = 8,
) -> Prepared:
    """Fetches and decodes a concept's images and their masks, and brings them to one shape by `data.fit`.

    `base`: the manifest's folder. `resolution`: side of the squares in pixels. `seed`: of random crops; their positions
    depend only on it, the image's index, the crop's index and the image's mask. `is_first_try`: see `fetch`. `masks`:
    one for each image, or none at all. `side_multiple`: see `ModelFamily`, for buckets. Raises ImageError for the first
    image or mask that can't be used.
    """
    pairs = zip(images, masks or [None] * len(images), strict=True)
    fetched = (
        _fetched(image, mask, index, base, config, is_first_try) for index, (image, mask) in enumerate(pairs)
    )
    return _prepared(fetched, config, resolution, seed, side_multiple)


def problems(
    images: Sequence[ImageSource],
    *,
    base: str,
    config: DataConfig,
    resolution: int,
    seed: int,
    masks: Sequence[ImageSource | None] = (),
    side_multiple: int = 8,
) -> list[ImageError]:
    """What is wrong with each of a concept's images and masks. Arguments: as of `prepare`.

    If all can be read, the first mask that shows nothing in its image as it is cut.
    """
    found, fetched = [], []
    for index, (image, mask) in enumerate(zip(images, masks or [None] * len(images), strict=True)):
        try:
            files = _fetched(image, mask, index, base, config, is_first_try=False)
            _decoded(files, config)
        except ImageError as error:
            found.append(error)
        else:
            fetched += [files] if any(masks) or config.alpha_masks else []
    if fetched and not found:
        try:
            _prepared(fetched, config, resolution, seed, side_multiple)
        except ImageError as error:
            found.append(error)
    return found


def _prepared(
    fetched: Iterable[_Files], config: DataConfig, resolution: int, seed: int, side_multiple: int
) -> Prepared:
    shape = (resolution, resolution)
    if config.fit == "bucket":
        fetched = list(fetched)
        with _ONE_DECODER:
            sizes = [_size(files, config) for files in fetched]
        shape = buckets.choose(sizes, buckets.shapes(resolution, side_multiple))
    cuts, uris, digests, mask_digests = [], [], [], []
    for index, files in enumerate(fetched):
        rng = np.random.default_rng([seed, index])
        centers = np.full((1, 2), 0.5) if config.crop == "center" else rng.random((config.variants, 2))
        with _ONE_DECODER:
            cuts.append(_fitted(files, shape, centers, config))
        uris.append(files.uri)
        digests.append(hashlib.sha256(files.data).hexdigest())
        mask_digests.append("" if files.mask is None else hashlib.sha256(files.mask).hexdigest())
    return Prepared(
        np.stack([cut.pixels for cut in cuts]),
        tuple(uris),
        tuple(digests),
        tuple(cut.places for cut in cuts),
        _stacked(cuts),
        tuple(mask_digests),
        tuple(cut.padding for cut in cuts) if config.fit == "pad" else (),
    )


def _fetched(
    image: ImageSource,
    mask: ImageSource | None,
    index: int,
    base: str,
    config: DataConfig,
    is_first_try: bool,
) -> _Files:
    data = fetch(image, base=base, config=config, index=index, is_first_try=is_first_try)
    files = _Files(name(image, index, base), data)
    if mask is None:
        return files
    try:
        data = fetch(mask, base=base, config=config, index=index, is_first_try=is_first_try, column="masks")
    except ImageError as error:
        raise MaskError.of(error) from None
    return replace(files, mask_uri=name(mask, index, base, "masks"), mask=data)


def _fitted(files: _Files, shape: Shape, centers: np.ndarray, config: DataConfig) -> _Cut:
    """Decodes an image and its mask, and brings both to a shape. `centers`: see `fitting.crops`."""
    image, mask, size = _decoded(files, config, near=max(shape))
    if config.fit == "pad":
        return _padded(files, image, mask, size, shape[0])
    if mask is None:
        return _Cut(fitting.crops(image, shape, centers), fitting.crop_places(size, shape, centers))
    if config.crop == "random":
        centers = mask_images.around(mask, fitting.part(mask.size, shape), centers)
    cut = fitting.mask_crops(mask, shape, centers)
    if not cut.any(axis=(1, 2)).all():
        raise MaskError(
            files.mask_uri or files.uri,
            "has nothing in the part of the image that is cut out: crop image and mask around the concept, or set "
            "data.crop=random, which keeps to what the mask shows, or data.fit=pad, which cuts nothing off",
        )
    return _Cut(fitting.crops(image, shape, centers), fitting.crop_places(size, shape, centers), cut)


def _padded(
    files: _Files, image: Image.Image, mask: Image.Image | None, size: tuple[int, int], side: int
) -> _Cut:
    around = fitting.padding(size, side)
    square = None if mask is None else fitting.padded(mask, side, around)[None]
    if square is not None and not square.any():
        raise MaskError(
            files.mask_uri or files.uri, f"has nothing that is left at {side} pixels: crop image and mask"
        )
    place = (size[1], size[0], 0, 0)
    return _Cut(fitting.padded(image, side, around)[None], (place,), square, around)


def _size(files: _Files, config: DataConfig) -> tuple[int, int]:
    """(width, height) of an image that may be damaged. Raises ImageError as `opened` does."""
    try:
        return original_size(files.data)
    except Exception:
        opened(files.data, files.uri, config.max_image_pixels)  # which says what is wrong
        raise


def _decoded(
    files: _Files, config: DataConfig, near: int | None = None
) -> tuple[Image.Image, Image.Image | None, tuple[int, int]]:
    """The image in RGB, its mask in L if it has one, and its size, (width, height). Raises ImageError.

    `near`: see `opened`.
    """
    most = config.max_image_pixels
    image = opened(files.data, files.uri, most, near)
    size, mask = original_size(files.data), None
    if files.mask is not None:
        mask = _mask(files.mask, files.mask_uri, most)
        mask_images.check(mask, files.mask_uri, size, files.uri)
    elif config.alpha_masks:
        mask = _converted(mask_images.of_alpha, image, files.uri)
        if mask is not None and not mask.getbbox():
            raise ImageError(
                files.uri,
                "is transparent everywhere, and data.alpha_masks takes that for its mask: leave it out",
            )
    return _in_rgb(image, files.uri), mask, size


def _mask(data: bytes, uri: str, max_pixels: int) -> Image.Image:
    try:
        return _converted(mask_images.levels, opened(data, uri, max_pixels), uri)
    except ImageError as error:
        raise MaskError.of(error) from None


def _stacked(cuts: Sequence[_Cut]) -> np.ndarray | None:
    """Masks of all images, if one of them has any: white for those without, and black in the padding."""
    if all(cut.mask is None for cut in cuts):
        return None
    masks = []
    for cut in cuts:
        mask = cut.mask
        if mask is None:
            left, top, right, bottom = cut.padding
            count, height, width = cut.pixels.shape[:3]
            mask = np.zeros((count, height, width), np.uint8)
            mask[:, top : height - bottom, left : width - right] = 255
        masks.append(mask)
    return np.stack(masks)


def decode(data: bytes, uri: str, max_pixels: int, near: int | None = None) -> Image.Image:
    """Decodes an image to sRGB: its first frame, its ICC profile and EXIF orientation applied, transparency over white,
    16 bits scaled to 8.

    Arguments and errors: as of `opened`.
    """
    return _in_rgb(opened(data, uri, max_pixels, near), uri)


def opened(data: bytes, uri: str, max_pixels: int, near: int | None = None) -> Image.Image:
    """An image as its file has it: the first frame, with EXIF orientation applied.

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
        return image
    except Exception as error:  # Pillow's decoders raise nearly everything
        raise ImageError(uri, f"is damaged: {error or type(error).__name__}") from None


def _in_rgb(image: Image.Image, uri: str) -> Image.Image:
    return _converted(_to_rgb, image, uri)


def _converted(convert: Callable[[Image.Image], Made], image: Image.Image, uri: str) -> Made:
    try:
        return convert(image)
    except Exception as error:  # Pillow's conversions raise nearly everything
        raise ImageError(uri, f"is damaged: {error or type(error).__name__}") from None


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
    if image.format == "TIFF":  # whose `size` Pillow turns, in some versions before the pixels are read
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


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
