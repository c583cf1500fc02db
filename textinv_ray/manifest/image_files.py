"""Kinds of image files: which ones are read, the endings of their names, and what only pretends to be one."""

from __future__ import annotations

from importlib.util import find_spec

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
}
"""Pillow's names of the formats that are read, with the endings of such files. EPS is left out because Pillow starts
another program for it. HEIF needs the package pillow-heif."""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Endings of the names of image files, in lower case."""
HEAD_BYTES = 512
"""As much of a file's beginning as `why_not_an_image` looks at."""
NEEDS_HEIF = "is a HEIC image, which needs another package: pip install 'textinv_ray[heic]'"
"""What is said of HEIC images where pillow-heif isn't installed."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def reads_heif() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def why_not_an_image(head: bytes) -> str:
    """Why a file that begins with `head` can't be read as an image, as far as its beginning tells; else empty."""
    if not head:
        return "is an empty file"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer and not the image itself: run `git lfs pull`"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:14].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "is an HTML page and not an image: the server may have answered with a login or an error"
    if start.startswith((b"<svg", b"<?xml")):
        return "is an SVG or XML file: convert it to PNG"
    is_heif = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head[8:64]
    if is_heif and not reads_heif():
        return NEEDS_HEIF
    return ""
