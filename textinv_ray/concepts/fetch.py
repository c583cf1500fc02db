"""Fetches the files of a row, such as its images, from local paths and URIs: within limits of size and time."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from textinv_ray.concepts import http
from textinv_ray.config.job import DataConfig
from textinv_ray.manifest.kinds import ImageSource
from textinv_ray.manifest.uris import locate
from textinv_ray.util import retries
from textinv_ray.util.files import read_regular
from textinv_ray.util.protocols import why_unusable
from textinv_ray.util.redact import redact_text, shown

MAX_IMAGE_BYTES = 256 * 2**20
"""Reading stops here: a larger file is not a training image."""
FIRST_TRY_S = 10.0
"""The longest that a first try waits for one file."""
FETCHES_PER_HOST = 4
"""Fetches from one host at a time, in one process: others wait, and those of other hosts go on."""


class ImageError(Exception):
    """An image can't be used. It fails only its own concept. The message has no credentials in it."""

    what = "image"
    """What can't be used, in the message."""

    def __init__(self, uri: str, reason: str, *, is_transient: bool = False) -> None:
        """`is_transient`: whether the same fetch may succeed later, or within a longer time."""
        self.uri = shown(uri)
        self.reason = redact_text(reason)
        self.is_transient = is_transient
        super().__init__(f"{self.what} {self.uri}: {self.reason}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.uri, self.reason)


def name(image: ImageSource, index: int, base: str = "", column: str = "images") -> str:
    """Name of an image in messages and reports: its URI without credentials, or for example "images[2]".

    `base`: the manifest's folder. If that is a URI, relative images are parts of URIs, whose query is cut off.
    `column`: of the manifest, for an image that has no URI.
    """
    uri = image if isinstance(image, str) else image.get("path")
    if not uri:
        return f"{column}[{index}]"
    return shown(uri.partition("?")[0] if "://" in base and "://" not in uri else uri)


def fetch(
    image: ImageSource,
    *,
    base: str,
    config: DataConfig,
    index: int = 0,
    is_first_try: bool = False,
    column: str = "images",
) -> bytes:
    """The bytes of one image file. Retries for up to `data.download_retry_s`. Raises ImageError.

    `is_first_try`: tries once, for at most `FIRST_TRY_S` seconds; `ImageError.is_transient` tells whether another try
    may succeed. `index`, `column`: see `name`.
    """
    shown_name = name(image, index, column=column)
    if not isinstance(image, str):
        data = image.get("bytes")
        if data is None:
            path = image.get("path")
            if not path:
                raise ImageError(shown_name, "has neither bytes nor a path")
            return fetch(
                path, base=base, config=config, index=index, is_first_try=is_first_try, column=column
            )
    else:
        data = _fetch(image, base, config, is_first_try)
    if not data:
        raise ImageError(shown_name, "is an empty file")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(shown_name, f"is larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    return data


def _fetch(image: str, base: str, config: DataConfig, is_first_try: bool) -> bytes:
    try:
        protocol, uri = locate(image, base)
    except ValueError as error:
        raise ImageError(image, str(error)) from None
    if protocol == "data":
        raise ImageError(uri, "data: URIs aren't read; give the image's bytes, as {bytes, path}")
    if "::" in uri and protocol not in ("file", "http", "https"):  # fsspec would follow the chain
        raise ImageError(uri, "chained URIs (::) are not supported")
    if protocol not in config.allowed_protocols:
        allowed = ", ".join(config.allowed_protocols)
        raise ImageError(uri, f"protocol {protocol!r} is not among data.allowed_protocols ({allowed})")
    limit_s = min(config.download_timeout_s, FIRST_TRY_S) if is_first_try else config.download_timeout_s
    is_cut_short = limit_s < config.download_timeout_s
    try:
        if protocol == "file":
            return _within(limit_s, lambda: read_regular(uri, MAX_IMAGE_BYTES + 1))
        return retries.call(
            lambda: _read_remote(uri, protocol, config, limit_s),
            patience_s=0 if is_first_try else config.download_retry_s,
            what=f"image {shown(uri)}",
        )
    except TimeoutError as error:
        why = f"didn't arrive within {limit_s:g} s (data.download_timeout_s)"
        may_pass = is_cut_short or (protocol != "file" and config.download_retry_s > 0)
        raise ImageError(uri, str(error) or why, is_transient=may_pass) from None
    except Exception as error:
        may_pass = protocol != "file" and config.download_retry_s > 0 and retries.is_transient(error)
        raise ImageError(uri, _why(error, protocol), is_transient=may_pass) from None


@dataclass(frozen=True)
class LocalFiles:
    """What is known of a row's local image files without reading them."""

    mtime_digest: str
    """Digest of their sizes and modification times. It changes if another image is stored under an old name. Empty if
    no image is a local file."""
    missing: tuple[str, ...]
    """Paths that don't exist or can't be accessed, without what looks like a signature."""


def local_files(images: Sequence[ImageSource], base: str) -> LocalFiles:
    """Looks up size and modification time of those images that are local files. `base`: the manifest's folder."""
    states, missing = [], []
    for image in images:
        try:
            protocol, path = locate(image, base) if isinstance(image, str) else ("", "")
        except ValueError:
            continue  # fails its concept when it is fetched
        if protocol != "file":
            continue
        try:
            status = os.stat(path)
            states.append(f"{status.st_size} {status.st_mtime_ns}")
        except (OSError, ValueError):
            states.append("missing")
            missing.append(shown(path))
    digest = hashlib.sha256("\n".join(states).encode()).hexdigest() if states else ""
    return LocalFiles(digest, tuple(missing))


def _read_remote(uri: str, protocol: str, config: DataConfig, limit_s: float) -> bytes:
    """The file, when the host has a free slot: within `limit_s` seconds from then."""
    with _slots(urlsplit(uri).netloc.rpartition("@")[2].lower()):
        if protocol in ("http", "https"):
            return http.read(uri, config, limit=MAX_IMAGE_BYTES + 1, timeout_s=limit_s)
        return _within(limit_s, lambda: _read_by_fsspec(uri))


_slots_of_hosts: WeakValueDictionary[str, threading.BoundedSemaphore] = WeakValueDictionary()
_slots_lock = threading.Lock()


def _slots(host: str) -> threading.BoundedSemaphore:
    """Held while something is fetched from the host."""
    with _slots_lock:
        slots = _slots_of_hosts.get(host)
        if slots is None:
            slots = _slots_of_hosts[host] = threading.BoundedSemaphore(FETCHES_PER_HOST)
        return slots


def _read_by_fsspec(uri: str) -> bytes:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    parts, left = [], MAX_IMAGE_BYTES + 1
    with filesystem.open(path, "rb") as file:
        while left > 0 and (part := file.read(min(left, 2**22))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _within(seconds: float, read: Callable[[], bytes]) -> bytes:
    """Calls `read()` with a time limit, which neither every protocol's library nor a network drive has.

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
        raise TimeoutError
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _why(error: Exception, protocol: str) -> str:
    """The reason in plain words. Library messages may contain the URI with credentials, which ImageError removes."""
    if isinstance(error, FileNotFoundError):
        return "doesn't exist"
    if isinstance(error, PermissionError):
        return "access denied"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, ImportError):
        return why_unusable(protocol, error)
    if isinstance(error, ValueError) and str(error).startswith("Protocol not known"):
        return why_unusable(protocol, error)
    if protocol in ("http", "https") and not isinstance(error, http.StatusError | http.RefusedError):
        return f"{type(error).__name__}: {error}"
    return str(error) or type(error).__name__
