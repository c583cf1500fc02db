"""A predictor that rows start from though they don't name it: a job fits it on its first words and has it at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from textinv_ray.concepts.predictor import Predictor


@dataclass(frozen=True)
class PredictedStart:
    """The file of a predictor. It stands in place of the `init_from` of the rows that start from it."""

    data: bytes
    """The file."""

    @cached_property
    def name(self) -> str:
        """The file's name, which has its digest: the same name is the same predictor, wherever the output lies."""
        return f"predictor-{hashlib.sha256(self.data).hexdigest()[:16]}.safetensors"

    @cached_property
    def predictor(self) -> Predictor:
        """What the file has. Raises ValueError when it is damaged."""
        return Predictor.from_bytes(self.data)

    def of(self, row: Mapping[str, object]) -> dict[str, object]:
        """The row as it starts from the predictor."""
        return {**row, "init_from": self.name}
