"""Parts of messages: the nearest known name, durations, texts of others on one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

LONGEST = 2000
"""Characters of a text of others (an error of a library, a URI) that are shown."""
# What moves a terminal's cursor, breaks lines, or turns the direction of writing, and halves of surrogate pairs
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def nearest(name: str, known: Sequence[str]) -> str:
    """The hint "; did you mean 'steps'?" when a known name is similar, else ""."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def duration(seconds: float) -> str:
    """A duration such as 45 s, 12 min, 3 h 20 min or 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text of others for a message or a terminal: control characters as `\\x1b`, a long one without its middle."""
    text = _UNSEEN.sub(_escaped, text)
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end - 7]} [...] {text[-end:]}"


def printable(text: str) -> str:
    """A text of several lines for a terminal: without other control characters, at full length."""
    return "\n".join(_UNSEEN.sub(_escaped, line) for line in text.split("\n"))


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
