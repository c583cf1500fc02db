"""What a reviewer should know of a word before approving it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from textinv_ray.service.store.records import Result

NEAR_DUPLICATE = 0.95
"""Cosine from which two words count as nearly the same."""
_FAR = 4.0  # robust standard deviations of the logarithm of the norm
_MIN_FACTOR = (
    1.5  # words of one catalogue may be very much alike: a norm less far away than this is no matter
)
_MIN_WORDS = 8  # fewer say nothing about what is usual

Kind = Literal["worse", "duplicate", "norm"]


@dataclass(frozen=True)
class Flag:
    """A warning."""

    kind: Kind
    text: str


def flags(results: Sequence[Result], nearest: Mapping[str, tuple[str, float]]) -> dict[str, list[Flag]]:
    """concept_id -> warnings, for the words that have any. `nearest`: see results_table.nearest."""
    found: dict[str, list[Flag]] = {}
    usual = _usual_norm(results)
    for result in results:
        of_word = []
        if result.is_worse_than_initializer:
            gain = result.clip_image_similarity_gain or 0.0
            of_word.append(Flag("worse", f"worse than its initializer by {-gain:.3f}"))
        other, cosine = nearest.get(result.concept_id, ("", -1.0))
        if cosine >= NEAR_DUPLICATE:
            of_word.append(Flag("duplicate", f"nearly the same word as {other} (cosine {cosine:.3f})"))
        norm = mean_norm(result)
        if usual and norm and abs(math.log(norm / usual[0])) > usual[1]:
            side = "larger" if norm > usual[0] else "smaller"
            factor = max(norm / usual[0], usual[0] / norm)
            of_word.append(Flag("norm", f"norm {norm:.2f}, {factor:.1f} times {side} than is usual here"))
        if of_word:
            found[result.concept_id] = of_word
    return found


def mean_norm(result: Result) -> float:
    """Mean Euclidean norm of a word's vectors, over all text encoders; 0 without any."""
    norms = [norm for of_encoder in result.norms.values() for norm in of_encoder]
    return sum(norms) / len(norms) if norms else 0.0


def _usual_norm(results: Sequence[Result]) -> tuple[float, float] | None:
    """(median norm, distance of its logarithm from which a norm is far out); none for a few words."""
    norms = [norm for result in results if (norm := mean_norm(result)) > 0]
    if len(norms) < _MIN_WORDS:
        return None
    logs = np.log(norms)
    median = float(np.median(logs))
    deviation = 1.4826 * float(np.median(np.abs(logs - median)))  # of a normal distribution: its sigma
    return math.exp(median), max(_FAR * deviation, math.log(_MIN_FACTOR))
