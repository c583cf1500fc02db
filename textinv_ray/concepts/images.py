"""Training images and their masks: decodes what was fetched, and cuts it into squares."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from textinv_ray.concepts import masks as mask_images
from textinv_ray.concepts.colors import to_srgb
from textinv_ray.concepts.fetch import ImageError, fetch, name
from textinv_ray.concepts.masks import MaskError
from textinv_ray.config.job import DataConfig
from textinv_ray.manifest import image_files
from textinv_ray.manifest.kinds import ImageSource

Places = tuple[tuple[int, int, int, int], ...]
"""Of each crop the original height and width, and its top and left: see `Concept.crops`."""
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
    crops: tuple[Places, ...]
    """See `Concept.crops`: (N, A, 4)."""
    masks: np.ndarray | None = None
    """See `Concept.masks`: uint8 (N, A, H, W)."""
    mask_digests: tuple[str, ...] = ()
    """SHA-256 of the bytes of each mask of the column `masks`; empty for an image without."""


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
    places: Places
    mask: np.ndarray | None


def prepare(
    images: Sequence[ImageSource],
    *,
    base: str,
    config: DataConfig,
    resolution: int,
    seed: int,
    is_first_try: bool = False,
    masks: Sequence[ImageSource | None] = (),
) -> Prepared:
    """Fetches, decodes and cuts a concept's images and their masks.

    `base`: the manifest's folder. `resolution`: side of the squares in pixels. `seed`: of random crops; their positions
    depend only on it, the image's index, the crop's index and the image's mask. `is_first_try`: see `fetch`. `masks`:
    one for each image, or none at all. Raises ImageError for the first image or mask that can't be used.
    """
    cuts, uris, digests, mask_digests = [], [], [], []
    for index, image in enumerate(images):
        files = _fetched(image, masks[index] if masks else None, index, base, config, is_first_try)
        rng = np.random.default_rng([seed, index])
        centers = np.full((1, 2), 0.5) if config.crop == "center" else rng.random((config.variants, 2))
        with _ONE_DECODER:
            cuts.append(_cut(files, resolution, centers, config))
        uris.append(files.uri)
        digests.append(hashlib.sha256(files.data).hexdigest())
        mask_digests.append("" if files.mask is None else hashlib.sha256(files.mask).hexdigest())
    return Prepared(
        np.stack([cut.pixels for cut in cuts]),
        tuple(uris),
        tuple(digests),
        tuple(cut.places for cut in cuts),
        _stacked([cut.mask for cut in cuts]),
        tuple(mask_digests),
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


def _cut(files: _Files, side: int, centers: np.ndarray, config: DataConfig) -> _Cut:
    """Decodes an image and its mask, and cuts squares from both. `centers`: see `crops`."""
    image, mask, size = _decoded(files, config, near=side)
    if mask is None:
        return _Cut(crops(image, side, centers), crop_places(size, side, centers), None)
    if config.crop == "random":
        shorter = min(mask.size)
        centers = mask_images.around(mask, (shorter, shorter), centers)
    cut = np.stack(
        [np.asarray(part) for part in _parts(mask, side, centers, Image.Resampling.BOX, reducing_gap=None)]
    )
    if not cut.any(axis=(1, 2)).all():
        raise MaskError(
            files.mask_uri or files.uri,
            "has nothing in the part of the image that is cut out of its middle: crop image and mask around the "
            "concept, or set data.crop=random, which keeps to it",
        )
    return _Cut(crops(image, side, centers), crop_places(size, side, centers), cut)


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
        mask = mask_images.of_alpha(image)
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


def _stacked(masks: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Masks of all images, if one of them has any: white for those without."""
    some = next((mask for mask in masks if mask is not None), None)
    if some is None:
        return None
    return np.stack([np.full_like(some, 255) if mask is None else mask for mask in masks])


def check(image: ImageSource, mask: ImageSource | None, *, base: str, config: DataConfig, index: int) -> None:
    """Fetches and decodes an image and its mask. Raises ImageError for one that can't be used."""
    _decoded(_fetched(image, mask, index, base, config, is_first_try=False), config)


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


def _converted(convert: Callable[[Image.Image], Image.Image], image: Image.Image, uri: str) -> Image.Image:
    try:
        return convert(image)
    except Exception as error:  # Pillow's conversions raise nearly everything
        raise ImageError(uri, f"is damaged: {error or type(error).__name__}") from None


def crops(image: Image.Image, size: int, centers: np.ndarray) -> np.ndarray:
    """Cuts squares from an RGB image and resizes them: uint8 (A, size, size, 3).

    The side of each is the image's shorter side. `centers`, (A, 2) in [0, 1]: position of each between left and right,
    and between top and bottom; 0.5 is the middle.
    """
    parts = _parts(image, size, centers, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.stack([np.asarray(part) for part in parts])


def _parts(
    image: Image.Image,
    size: int,
    centers: np.ndarray,
    filter: Image.Resampling,
    reducing_gap: float | None,
) -> Iterator[Image.Image]:
    side = min(image.size)
    slack = np.array(image.size) - side
    for left, top in np.clip(centers, 0, 1) * slack:
        # The same as resizing the whole image and then cutting, without a huge result for an image of 1 x 10000.
        box = (float(left), float(top), float(left) + side, float(top) + side)
        yield image.resize((size, size), filter, box, reducing_gap=reducing_gap)


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


def crop_places(size: tuple[int, int], side: int, centers: np.ndarray) -> Places:
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
