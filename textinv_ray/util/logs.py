"""Logging of worker processes, without credentials."""

from __future__ import annotations

import logging

from textinv_ray.util.redact import redact_text

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """Sends this process's log to stderr, where Ray collects it. Credentials in URIs are removed."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Clean(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Clean(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record))
