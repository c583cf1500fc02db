"""Retries calls to stores and networks after transient errors, and tells these from permanent ones."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from textinv_ray.util.redact import redact_text

logger = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
_PERMANENT_ERRNOS = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EDQUOT", "EFBIG", "EINVAL", "EISDIR", "ENAMETOOLONG", "ENOENT", "ENOSPC", "ENOSYS"),
        *("ENOTDIR", "ENOTEMPTY", "EEXIST", "EPERM", "EROFS"),
    )
}
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
# Libraries whose connection errors mostly aren't OSErrors
_NETWORK = {"aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google", "urllib3"}
_NEVER = ("credential", "validation", "invalid", "unknown", "notfound", "profile", "certificate")


def call(action: Callable[[], T], *, patience_s: float, what: str) -> T:
    """`action()`, retried after transient errors at growing intervals, for `patience_s` seconds.

    what: the name of the target in the log. Raises the last error of `action`, and a permanent error at once.
    """
    wait, end = FIRST_WAIT_S, time.monotonic() + patience_s
    while True:
        try:
            return action()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + wait > end:
                raise
            why = redact_text(str(error)) or type(error).__name__
            logger.warning("%s: %s; trying again", what, why)
        # A random factor, so that workers don't all retry at the same moment
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT_S)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: true for throttling, resets, time-outs and 5xx responses; false for
    denied access, missing files and full disks."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return is_transient(error.__cause__)  # fsspec raises it for any response of a web server
    status = _http_status(error)
    if status is not None:
        return status in _TRANSIENT_STATUSES
    if isinstance(error, OSError):
        return error.errno not in _PERMANENT_ERRNOS and not isinstance(
            error, FileNotFoundError | PermissionError
        )
    name = type(error).__name__.lower()
    return type(error).__module__.split(".")[0] in _NETWORK and not any(word in name for word in _NEVER)


def _http_status(error: BaseException) -> int | None:
    """The HTTP status of an error of aiohttp, gcsfs or botocore; None for errors without a response."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    if metadata:
        status = metadata.get("HTTPStatusCode")
    else:
        status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return status if isinstance(status, int) and status >= 300 else None
