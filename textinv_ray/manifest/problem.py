"""Problems of a manifest, and the error that lists them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact


@dataclass(frozen=True)
class Problem:
    """One problem of a table with rows and columns."""

    row: int | None
    """Number of the row, from 0; None: a problem of the whole column."""
    concept_id: str | None
    """The row's concept_id, if it has one."""
    column: str
    """Name of the column."""
    message: str
    """What is wrong, and what to do."""

    def __str__(self) -> str:
        if self.row is None:
            return f"column {self.column!r}: {self.message}"
        row = f"row {self.row}" + (f" ({self.concept_id})" if self.concept_id else "")
        return f"{row}, column {self.column!r}: {self.message}"


SHOWN_PROBLEMS = 50
"""Number of problems that one error lists. The others are only counted."""


def raise_problems(uri: str, problems: Iterator[Problem], what: str = "the manifest") -> None:
    """Raises UserError if there are problems: it names the file, lists the first 50 and counts the others.

    `what`: the kind of file, for the message.
    """
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
