"""What is wrong with a manifest, by row and column."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest."""

    row: int | None
    """From 0; none: the column as a whole."""
    concept_id: str | None
    """The row's, if it has one."""
    column: str
    """Name of the column."""
    message: str
    """What is wrong and what to do."""

    def __str__(self) -> str:
        if self.row is None:
            return f"column {self.column!r}: {self.message}"
        row = f"row {self.row}" + (f" ({self.concept_id})" if self.concept_id else "")
        return f"{row}, column {self.column!r}: {self.message}"


SHOWN_PROBLEMS = 50
"""How many problems one message lists; the rest is counted."""


def raise_problems(uri: str, problems: Iterator[Problem], what: str = "the manifest") -> None:
    """Raises UserError when there are any: the file, the first 50 and how many more."""
    first = list(itertools.islice(problems, SHOWN_PROBLEMS))
    if not first:
        return
    more = sum(1 for _ in problems)
    count = len(first) + more
    lines = [f"{redact(uri)}: {count} problem{'s' if count > 1 else ''} in {what}"]
    lines += [f"  {problem}" for problem in sorted(first, key=lambda p: -1 if p.row is None else p.row)]
    if more:
        lines.append(f"  ... and {more} more")
    raise UserError("\n".join(lines))
