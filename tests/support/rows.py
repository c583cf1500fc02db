"""Prepared rows, as Ray Data would stream them to the scheduler."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar

from textinv_ray.concepts.concept import Concept
from textinv_ray.service.scheduling.protocol import PreparedRow, shape_name

R = TypeVar("R", bound="Rows")


def row(
    concept_id: str,
    steps: int = 10,
    concept: bytes = b"x",
    error: str = "",
    done: bool = False,
    shape: str = "16x16",
) -> PreparedRow:
    """One prepared row."""
    return {
        "concept_id": concept_id,
        "steps": steps,
        "shape": shape,
        "concept": concept,
        "error": error,
        "done": done,
    }


class Rows:
    """A source of rows that counts how many were pulled."""

    def __init__(self, rows: Iterable[PreparedRow]) -> None:
        self._rows = list(rows)
        self.pulled = 0

    @classmethod
    def numbered(cls: type[R], count: int, **changes: Any) -> R:
        """Rows c0, c1, ..., all with the same `changes`."""
        return cls(row(f"c{index}", **changes) for index in range(count))

    @classmethod
    def of(cls, concepts: Iterable[Concept], errors: Iterable[str] = ()) -> Rows:
        """The concepts; then a row for each id in `errors`, whose images can't be read."""
        sound = [
            row(c.concept_id, steps=c.steps, concept=c.to_bytes(), shape=shape_name(c.shape))
            for c in concepts
        ]
        broken = [row(name, steps=5, concept=b"", error="image x.png: is truncated") for name in errors]
        return cls([*sound, *broken])

    def iter_rows(self, wanted: Collection[str]) -> Iterator[PreparedRow]:
        for each in self._rows:
            if each["concept_id"] in wanted:
                self.pulled += 1
                yield each.copy()
