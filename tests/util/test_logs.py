"""What worker processes log."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import logging
from textinv_ray.util.logs import log_to_stderr

log_to_stderr()
logger = logging.getLogger("some.library")
logger.info("from %s", "https://me:secret@host/a?sig=secret")
try:
    raise OSError("s3://key:secret@bucket/x: denied")
except OSError:
    logger.exception("a call failed")
"""


def test_messages_and_tracebacks_without_credentials() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert "INFO some.library: from https://host/a\n" in done.stderr
    assert "OSError: s3://bucket/x: denied" in done.stderr
    assert "secret" not in done.stderr
