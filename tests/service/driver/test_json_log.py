"""Lines of any form become lines of JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from textinv_ray.service.driver.json_log import JsonLog
from textinv_ray.util.logs import json_line


def converted(*lines: str) -> list[dict[str, Any]]:
    """What a fresh log makes of these lines."""
    return [
        json.loads(line) for line in JsonLog().converted("".join(line + "\n" for line in lines)).splitlines()
    ]


def test_our_own_lines_keep_their_fields() -> None:
    own = json_line("WARNING", "cat failed", {"concept_id": "cat", "worker": "w", "logger": "x"}, at=1.5)
    (found,) = converted(own)
    assert found == json.loads(own)
    assert found["time"] == "1970-01-01T00:00:01.500Z"


def test_lines_of_other_processes_say_which() -> None:
    own = json_line("INFO", "cat: from step 0", {"concept_id": "cat", "worker": "far-7-ab"})
    told, noise, other, local = converted(
        f"(RayTrainWorker pid=7, ip=10.0.0.2) {own}",
        "(RayTrainWorker pid=7, ip=10.0.0.2) noise of a library",
        "(RayTrainWorker pid=7, ip=10.0.0.3) of the same number elsewhere",
        "(pid=9) of a process without a name",
    )
    assert (told["concept_id"], told["worker"], told["process"]) == ("cat", "far-7-ab", "RayTrainWorker")
    assert (told["pid"], told["ip"], told["message"]) == (7, "10.0.0.2", "cat: from step 0")
    assert (noise["worker"], noise["message"]) == ("far-7-ab", "noise of a library")
    assert "worker" not in other
    assert (local["pid"], local["message"]) == (9, "of a process without a name")
    assert "process" not in local


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("2026-11-26 22:10:17,717\tINFO util.py:402 -- a", "INFO"),
        ("[FailurePolicy] WARNING: a", "WARNING"),
        ("ERROR a", "ERROR"),
        ("a", "INFO"),
        ("x" * 100 + " ERROR far in the line", "INFO"),
    ],
)
def test_the_level_of_a_librarys_line(line: str, level: str) -> None:
    (found,) = converted(f"(MapBatches(prepare) pid=7) {line}")
    assert (found["level"], found["message"], found["process"]) == (level, line, "MapBatches(prepare)")


@pytest.mark.parametrize(
    "line",
    [
        '{"time": "1", "level": "INFO"}',
        '{"time": ',
        '{"time": "1", "level": {}, "message": []}',
        '["time"]',
        '{"level": "INFO", "message": "not of ours"}',
        "(pid=x) no number",
    ],
)
def test_what_only_looks_like_ours_is_a_message(line: str) -> None:
    (found,) = converted(line)
    assert found["message"] == line


def test_no_blank_lines_and_no_credentials() -> None:
    found = converted(
        "",
        "  ",
        "(Worker pid=7) ",
        "from s3://key:secret@bucket/x",
        '{"time": "1", "level": "INFO", "message": "s3://a:secret@b"}',
    )
    assert [line["message"] for line in found] == ["from s3://bucket/x", "s3://b"]
