"""What a node of Ray offers to Prometheus."""

from __future__ import annotations

import re
import urllib.request
from typing import NamedTuple

_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<tags>.*)\} (?P<value>\S+)$")
_TAG = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """One line of the text format."""

    name: str
    tags: dict[str, str]
    value: float


def scraped(url: str) -> list[Sample]:
    """What an endpoint has of this package."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [match for match in map(_SAMPLE.match, lines) if match and "textinv" in match["name"]]
    return [
        Sample(match["name"], dict(_TAG.findall(match["tags"])), float(match["value"])) for match in found
    ]
