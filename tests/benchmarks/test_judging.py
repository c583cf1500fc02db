"""benchmarks/judging.py: retrieval among all concepts and within a style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.judging import WITHIN, Judged, values_of
from textinv_ray.concepts.retrieval import Features
from textinv_ray.inversion.review import Review

AXES = np.eye(4, dtype=np.float32)


def judged(name: str, style: str, own: int, pictures: Sequence[int]) -> Judged:
    """A word of the concept whose views lie on axis `own`, with pictures on these axes."""
    features = Features.of(AXES[list(pictures)], AXES[[own]])
    return Judged(name, style, Review({}, 0.5, 0.25, features=features), loss=0.1)


def test_rivals_of_the_same_style() -> None:
    """A picture that is nearest to a concept of another style is a hit among its own."""
    near = AXES[0] + 0.5 * AXES[1]
    b = Features.of((near / np.linalg.norm(near))[None], AXES[[1]])
    words = [judged("a", "ink", 0, [0, 0]), judged("a", "ink", 0, [0, 3])]
    words += [Judged("b", "chalk", Review({}, 0.5, 0.25, features=b), loss=0.1)]
    words += [judged("c", "chalk", 2, [2]), judged("d", "ink", 3, [3])]
    found = values_of(words)
    assert found["retrieval"] == [0.75, 0, 1, 1]
    assert found[WITHIN] == [0.75, 1, 1, 1]


@pytest.mark.parametrize("styles", [("ink", "ink", "chalk"), ("", "", "")])
def test_a_concept_without_rivals_of_its_style(styles: Sequence[str]) -> None:
    found = values_of([judged(str(place), style, place, [place]) for place, style in enumerate(styles)])
    assert WITHIN not in found
    assert found["retrieval"] == [1, 1, 1]
