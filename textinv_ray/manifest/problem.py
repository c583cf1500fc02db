"""Problems of a manifest, and the error that lists them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact
from textinv_ray.util.text import one_line


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
    part: str = ""
    """Name of the file with the row, if the table consists of several; the row's number counts in it."""

    def __str__(self) -> str:
        row = place(self.part, self.row) + (f" ({one_line(self.concept_id, 128)})" if self.concept_id else "")
        return ", ".join(filter(None, (row, f"column {self.column!r}: {self.message}")))


def place(part: str, row: int | None) -> str:
    """A row in words, such as "row 3", or "part-0.parquet, row 3"; empty for a column of a table in one file."""
    return ", ".join(filter(None, (part, "" if row is None else f"row {row}")))


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
    lines += [f"  {problem}" for problem in sorted(first, key=_order)]
    if more:
        lines.append(f"  ... and {more} more")
    raise UserError("\n".join(lines))


def _order(problem: Problem) -> tuple[bool, str, int]:
    """Those of whole columns first, then by file and row."""
    if problem.row is None:
        return False, "", 0
    return True, problem.part, problem.row
