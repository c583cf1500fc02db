"""What processes log: lines of text, or of JSON with the ids of what they are about. No credentials in either."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from textinv_ray.util.redact import redact_text

LogFormat = Literal["text", "json"]
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
PACKAGE = "textinv_ray"
_concept: ContextVar[str] = ContextVar("concept", default="")
_worker = ""


@contextmanager
def about(concept_id: str) -> Iterator[None]:
    """What this thread logs in the block is about this concept."""
    token = _concept.set(concept_id)
    try:
        yield
    finally:
        _concept.reset(token)


def set_worker(name: str) -> None:
    """What this process logs from now on is this worker's."""
    global _worker
    _worker = name


def json_line(
    level: str, message: str, more: Mapping[str, str | int] = {}, *, at: float | None = None
) -> str:
    """A line of a log as JSON: time (ISO 8601, UTC), level, message, then `concept_id`, `worker` and `more`.

    `at`: in seconds since 1970; None: now. What is empty is left out; credentials in texts are removed.
    """
    at = time.time() if at is None else at
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"
    fields: dict[str, str | int] = {"time": stamp, "level": level, "message": message}
    fields |= {"concept_id": _concept.get(), "worker": _worker, **more}
    clean = {
        name: redact_text(value) if isinstance(value, str) else value
        for name, value in fields.items()
        if value or name == "message"
    }
    return json.dumps(clean, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Lines of text. A traceback follows in lines of its own."""

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """As the base class, without credentials."""
        return redact_text(super().format(record))


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record; a traceback is its `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `json_line`."""
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        more = {"logger": record.name, "traceback": trace}
        return json_line(record.levelname, record.getMessage(), more, at=record.created)


def formatter(log_format: LogFormat) -> logging.Formatter:
    """The formatter for `service.log_format`."""
    return JsonFormatter() if log_format == "json" else TextFormatter()


def log_to_stderr(log_format: LogFormat) -> None:
    """Sends what this package logs in this process to stderr, where Ray collects it. A second call changes nothing.

    Ray's libraries have set up logging for themselves, and for libraries that they know nothing of, in their processes.
    """
    ours = logging.getLogger(PACKAGE)
    if any(isinstance(handler.formatter, TextFormatter | JsonFormatter) for handler in ours.handlers):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
