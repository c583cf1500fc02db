"""Prepared rows, as Ray Data would stream them to the scheduler."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from textinv_ray.concepts.concept import Concept

R = TypeVar("R", bound="Rows")


def row(concept_id: str, **changes: Any) -> dict[str, Any]:
    """One prepared row; `changes` are columns."""
    return {
        "concept_id": concept_id,
        "steps": 10,
        "concept": b"x",
        "error": "",
        "done": False,
        **changes,
    }


class Rows:
    """A source of rows that counts how many were pulled."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows = [dict(row) for row in rows]
        self.pulled = 0

    @classmethod
    def numbered(cls: type[R], count: int, **changes: Any) -> R:
        """Rows c0, c1, ..., all with the same `changes`."""
        return cls(row(f"c{index}", **changes) for index in range(count))

    @classmethod
    def of(cls, concepts: Iterable[Concept], errors: Iterable[str] = ()) -> Rows:
        """The concepts; then a row for each id in `errors`, whose images can't be read."""
        sound = [row(c.concept_id, steps=c.steps, concept=c.to_row()["concept"]) for c in concepts]
        broken = [row(name, steps=5, concept=b"", error="image x.png: is truncated") for name in errors]
        return cls([*sound, *broken])

    def iter_rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
        for each in self._rows:
            if each["concept_id"] in wanted:
                self.pulled += 1
                yield dict(each)
