"""What worker processes log."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from textinv_ray.util.logs import about, json_line

SCRIPT = """
import logging, sys
from textinv_ray.util.logs import about, log_to_stderr, set_worker

log_to_stderr(sys.argv[1])
log_to_stderr(sys.argv[1])
logger = logging.getLogger("textinv_ray.some.module")
logger.info("from %s", "https://me:secret@host/a?sig=secret")
try:
    raise OSError("s3://key:secret@bucket/x: denied")
except OSError:
    logger.exception("a call failed")
set_worker("w")
with about("cat"):
    logger.warning("line\\nfeed")
logger.info("")
"""


def logged(log_format: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, log_format], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stderr


def test_messages_and_tracebacks_without_credentials() -> None:
    text = logged("text")
    assert text.count("INFO textinv_ray.some.module: from https://host/a\n") == 1
    assert "OSError: s3://bucket/x: denied" in text
    assert "secret" not in text


def test_lines_of_json_say_what_they_are_about() -> None:
    text = logged("json")
    assert "secret" not in text
    info, failed, warning, empty = [json.loads(line) for line in text.splitlines()]
    assert list(info) == ["time", "level", "message", "logger"]
    assert (info["level"], info["message"]) == ("INFO", "from https://host/a")
    then = datetime.fromisoformat(info["time"].replace("Z", "+00:00"))
    assert abs((datetime.now(timezone.utc) - then).total_seconds()) < 60
    assert failed["level"] == "ERROR"
    assert failed["traceback"].endswith("OSError: s3://bucket/x: denied")
    assert (warning["concept_id"], warning["worker"], warning["message"]) == ("cat", "w", "line\nfeed")
    assert "concept_id" not in empty
    assert (empty["worker"], empty["message"]) == ("w", "")


def test_what_a_thread_logs_is_about_its_own_concept() -> None:
    with ThreadPoolExecutor(1) as pool, about("cat"):
        assert json.loads(json_line("INFO", "here"))["concept_id"] == "cat"
        assert "concept_id" not in json.loads(pool.submit(json_line, "INFO", "there").result())
        with about("dog"):
            assert json.loads(json_line("INFO", "within"))["concept_id"] == "dog"
    assert "concept_id" not in json.loads(json_line("INFO", "after"))
