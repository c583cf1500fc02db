"""job.log as lines of JSON, whatever form the lines had that libraries and other processes printed."""

from __future__ import annotations

import json
import re

from textinv_ray.util.logs import json_line

_OF_A_PROCESS = re.compile(
    r"\((?:(?P<process>[^\n]*?) )?pid=(?P<pid>\d+)(?:, ip=(?P<ip>[^)]+))?\) ?(?P<text>.*)"
)
"""What Ray puts before the lines of other processes."""
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_LEVEL_WITHIN = 80  # characters of a line


class JsonLog:
    """Turns lines into JSON, and remembers which process is which worker."""

    def __init__(self) -> None:
        self._workers: dict[tuple[str, str], str] = {}

    def converted(self, text: str) -> str:
        """Each line that isn't blank as one of JSON: with the fields that it has, or as a message.

        A line of another process gets `process`, `pid` and `ip` by what Ray wrote before it, and the `worker` that
        this process has called itself.
        """
        return "".join(filter(None, map(self._line, text.splitlines())))

    def _line(self, line: str) -> str:
        found = _OF_A_PROCESS.fullmatch(line)
        text = found["text"] if found else line
        if not text.strip():
            return ""
        fields = _fields(text)
        if found:
            place = found["ip"] or "", found["pid"]
            if worker := fields.get("worker"):
                self._workers[place] = str(worker)
            fields.setdefault("worker", self._workers.get(place, ""))
            fields |= {"process": found["process"] or "", "pid": int(found["pid"]), "ip": found["ip"] or ""}
        return json_line(str(fields["level"]), str(fields["message"]), fields) + "\n"


def _fields(text: str) -> dict[str, str | int]:
    """What a line says: its own fields if it is one of our JSON, else a level and the line as a message."""
    if text.startswith('{"time":'):
        try:
            found = json.loads(text)
            fields = {name: value for name, value in found.items() if isinstance(value, str | int)}
            if {"level", "message"} <= fields.keys():
                return fields
        except ValueError:
            pass
    level = _LEVEL.search(text[:_LEVEL_WITHIN])
    return {"level": level[0] if level else "INFO", "message": text}
