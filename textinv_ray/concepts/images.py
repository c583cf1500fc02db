"""Training images: fetches them from local paths and URIs, decodes them, and cuts them into squares."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from textinv_ray.config.job import DataConfig
from textinv_ray.manifest.kinds import ImageSource
from textinv_ray.util import retries
from textinv_ray.util.redact import redact, redact_text

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats that Pillow may decode. EPS is left out because Pillow starts another program for it."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Reading stops here: a larger file is not a training image."""


class ImageError(Exception):
    """An image can't be used. It fails only its own concept. The message has no credentials in it."""

    def __init__(self, uri: str, reason: str) -> None:
        self.uri = redact(uri)
        self.reason = redact_text(reason)
        super().__init__(f"image {self.uri}: {self.reason}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return ImageError, (self.uri, self.reason)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The images of one concept."""

    pixels: np.ndarray
    """uint8 (N, A, S, S, 3)."""
    uris: tuple[str, ...]
    """Where they came from, without credentials."""
    digests: tuple[str, ...]
    """SHA-256 of each file's bytes."""


def prepare(
    images: Sequence[ImageSource], *, base: str, config: DataConfig, resolution: int, seed: int
) -> Prepared:
    """Fetches, decodes and cuts a concept's images.

    `base`: the manifest's folder. `resolution`: side of the squares in pixels. `seed`: of random crops; their positions
    depend only on it, the image's index and the crop's index. Raises ImageError for the first image that can't be used.
    """
    pixels, digests = [], []
    for index, image in enumerate(images):
        data = fetch(image, base=base, config=config, index=index)
        rng = np.random.default_rng([seed, index])
        centers = np.full((1, 2), 0.5) if config.crop == "center" else rng.random((config.variants, 2))
        uri = name(image, index)
        pixels.append(crops(decode(data, uri, config.max_image_pixels, near=resolution), resolution, centers))
        digests.append(hashlib.sha256(data).hexdigest())
    return Prepared(np.stack(pixels), tuple(name(image, i) for i, image in enumerate(images)), tuple(digests))


def name(image: ImageSource, index: int) -> str:
    """Name of an image in messages and reports: its URI without credentials, or for example "images[2]"."""
    uri = image if isinstance(image, str) else image.get("path")
    return redact(uri) if uri else f"images[{index}]"


def fetch(image: ImageSource, *, base: str, config: DataConfig, index: int = 0) -> bytes:
    """The bytes of one image file. Retries for up to `data.download_retry_s`. Raises ImageError."""
    if not isinstance(image, str):
        data = image.get("bytes")
        if data is None:
            path = image.get("path")
            if not path:
                raise ImageError(name(image, index), "has neither bytes nor a path")
            return fetch(path, base=base, config=config, index=index)
    else:
        protocol, uri = locate(image, base)
        if "::" in uri and protocol != "file":
            raise ImageError(uri, "chained URIs (::) are not supported")
        if protocol not in config.allowed_protocols:
            allowed = ", ".join(config.allowed_protocols)
            raise ImageError(uri, f"protocol {protocol!r} is not among data.allowed_protocols ({allowed})")
        try:
            if protocol == "file":
                data = _read_local(uri)
            else:
                data = retries.call(
                    lambda: _within(config.download_timeout_s, lambda: _read_remote(uri, protocol)),
                    patience_s=config.download_retry_s,
                    what=f"image {redact(uri)}",
                )
        except Exception as error:
            raise ImageError(uri, _why(error, protocol)) from None
    if not data:
        raise ImageError(name(image, index), "is an empty file")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(name(image, index), f"is larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    return data


def locate(uri: str, base: str) -> tuple[str, str]:
    """Resolves an image URI, relative ones from `base`, the manifest's folder.

    Returns (protocol, location). The location of a local file is a path, with the protocol "file"; of others, a URI.
    """
    if "://" not in uri and not uri.startswith("/"):
        protocol, separator, folder = base.rpartition("://")
        # Object stores would take `..` for a name.
        uri = protocol + separator + posixpath.normpath(posixpath.join(folder, uri))
    protocol, separator, path = uri.partition("://")
    if not separator:
        return "file", uri
    protocol = protocol.lower()
    if protocol in ("file", "local"):
        return "file", path.removeprefix("localhost") if path.startswith("localhost/") else path
    return protocol, uri


@dataclass(frozen=True)
class LocalFiles:
    """What is known of a row's local image files without reading them."""

    mtime_digest: str
    """Digest of their sizes and modification times. It changes if another image is stored under an old name. Empty if
    no image is a local file."""
    missing: tuple[str, ...]
    """Paths that don't exist or can't be accessed."""


def local_files(images: Sequence[ImageSource], base: str) -> LocalFiles:
    """Looks up size and modification time of those images that are local files. `base`: the manifest's folder."""
    states, missing = [], []
    for image in images:
        protocol, path = locate(image, base) if isinstance(image, str) else ("", "")
        if protocol != "file":
            continue
        try:
            status = os.stat(path)
            states.append(f"{status.st_size} {status.st_mtime_ns}")
        except (OSError, ValueError):
            states.append("missing")
            missing.append(path)
    digest = hashlib.sha256("\n".join(states).encode()).hexdigest() if states else ""
    return LocalFiles(digest, tuple(missing))


def decode(data: bytes, uri: str, max_pixels: int, near: int | None = None) -> Image.Image:
    """Decodes an image to RGB: its first frame, EXIF orientation applied, transparency over white, 16 bits scaled to 8.

    `uri`: its name in errors. `near`: the side in pixels that it will be resized to; a large JPEG is then decoded at a
    reduced size. Raises ImageError.
    """
    try:
        Image.init()
        image: Image.Image = Image.open(BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.DecompressionBombError:
        raise ImageError(uri, f"has more than {max_pixels} pixels (data.max_image_pixels)") from None
    except Image.UnidentifiedImageError:
        raise ImageError(uri, "is not an image of a known kind") from None
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion clips everything above 255.
        grey = np.asarray(image).astype(np.float64) * (255 / 65535)
        return Image.fromarray(np.rint(grey.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _read_local(path: str) -> bytes:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a device or a pipe might never end
        raise OSError("is not a regular file")
    with open(path, "rb") as file:
        return file.read(MAX_IMAGE_BYTES + 1)


def _read_remote(uri: str, protocol: str) -> bytes:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    # Streaming avoids a HEAD request, which many web servers answer wrongly.
    options = {"block_size": 0} if protocol in ("http", "https") else {}
    parts, left = [], MAX_IMAGE_BYTES + 1
    with filesystem.open(path, "rb", **options) as file:
        while left > 0 and (part := file.read(min(left, 2**22))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _within(seconds: float, read: Callable[[], bytes]) -> bytes:
    """Calls `read()` with a time limit, which not every protocol's library has.

    Uses a daemon thread, because one that hangs must not keep the process from ending. Raises TimeoutError.
    """
    outcome: list[bytes | BaseException] = []

    def run() -> None:
        try:
            outcome.append(read())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"didn't arrive within {seconds:g} s (data.download_timeout_s)")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _why(error: Exception, protocol: str) -> str:
    """The reason in plain words. Library messages may contain the URI with credentials, which ImageError removes."""
    cause = error.__cause__
    if protocol in ("http", "https") and isinstance(error, FileNotFoundError) and cause is not None:
        # fsspec raises this for every failure. What really happened is its cause.
        status = getattr(cause, "status", None)
        return f"HTTP status {status}" if status else f"{type(cause).__name__}: {cause}"
    if isinstance(error, FileNotFoundError):
        return "doesn't exist"
    if isinstance(error, PermissionError):
        return "access denied"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, ImportError):
        return f"reading {protocol}:// needs another Python package: {error}"
    return str(error) or type(error).__name__
