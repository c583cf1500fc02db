"""Trying again what a store or a network failed at for now, and what must not be tried again."""

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
# Libraries whose errors mostly aren't OSErrors, though they tell of connections.
_NETWORK = {"aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google", "urllib3"}
_NEVER = ("credential", "validation", "invalid", "unknown", "notfound", "profile")


def call(action: Callable[[], T], *, patience_s: float, what: str) -> T:
    """`action()`, tried again after transient errors at growing intervals for `patience_s` seconds.

    `what` names it in the log. Raises what `action` raised last; at once when that is not transient.
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
        # Not all workers at the same moment, when a store is back or slows them down.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT_S)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: throttling, resets, time-outs, 5xx; not denied, missing, full."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return is_transient(error.__cause__)  # fsspec says "not found" of whatever a web server answers
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
    """Of aiohttp's, gcsfs' and botocore's errors that came with an answer."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    if metadata:
        status = metadata.get("HTTPStatusCode")
    else:
        status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return status if isinstance(status, int) and status >= 300 else None
