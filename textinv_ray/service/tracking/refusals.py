"""What MLflow will never take, told from an MLflow that is away: the first ends, the second is waited for."""

from __future__ import annotations

import os
from pathlib import Path

from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.text import one_line

_SQLITE = "sqlite:///"
_HEADER = b"SQLite format 3\0"
_REFUSED = {
    *("ALREADY_EXISTS", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "INVALID_PARAMETER_VALUE"),
    *("INVALID_STATE", "INVALID_STATE_TRANSITION", "MALFORMED_REQUEST", "NOT_FOUND", "NOT_IMPLEMENTED"),
    *("CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"),
}
"""Codes of MlflowException for which the same request is refused again. Without a code from the server, MLflow says
INTERNAL_ERROR, which may be anything."""


class UnusableError(ValueError):
    """This MLflow can't be written to, however often it is tried."""


def is_refusal(error: BaseException) -> bool:
    """Whether the same call would be refused again: false for refused connections, time-outs and locked databases."""
    code = getattr(error, "error_code", None)
    if isinstance(code, str):
        return code in _REFUSED
    return isinstance(
        error, ValueError | TypeError | LookupError | ImportError | AttributeError | MemoryError
    )


def is_gone(error: BaseException) -> bool:
    """Whether a run isn't there any more: somebody has deleted it."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def reason(error: BaseException) -> str:
    """The first line of an error's message, without credentials."""
    text = str(error).strip()[:10_000].split("\n")[0]
    return one_line(redact_text(text), 500) or type(error).__name__


def check_database(uri: str) -> None:
    """Raises UnusableError for a SQLite file that is none or can't be written, which MLflow tries for a minute."""
    if uri.startswith(_SQLITE) and "?" not in uri:
        why = _why_unusable(Path(uri.removeprefix(_SQLITE)))
        if why:
            raise UnusableError(f"{redact(uri)}: {why}")


def _why_unusable(path: Path) -> str:
    try:
        if not path.exists():
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            is_writable = folder.is_dir() and os.access(folder, os.W_OK)
            return "" if is_writable else f"{folder} can't be written"
        if not path.is_file():
            return "it isn't a file"
        with path.open("rb") as file:
            if file.read(len(_HEADER)) not in (b"", _HEADER):
                return "it isn't a SQLite database"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "" if os.access(path, os.W_OK) else "it can't be written"
