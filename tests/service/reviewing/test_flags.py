"""Warnings before a word is approved."""

from __future__ import annotations

import pytest

from tests.support import examples
from textinv_ray.service.reviewing.flags import flags


def test_worse_than_the_initializer() -> None:
    results = [
        examples.result("good"),
        examples.result("bad", clip_image_similarity_initializer=0.594, clip_image_similarity=0.414),
        examples.result("unknown", clip_image_similarity=None),
    ]
    found = flags(results, {})
    assert [(name, [flag.text for flag in of]) for name, of in found.items()] == [
        ("bad", ["worse than its initializer by 0.180"])
    ]


def test_near_duplicates() -> None:
    results = [examples.result("a"), examples.result("b")]
    found = flags(results, {"a": ("b", 0.97), "b": ("a", 0.9)})
    assert [flag.kind for flag in found["a"]] == ["duplicate"]
    assert "b" not in found


@pytest.mark.parametrize("norm", [9.0, 0.1])
def test_a_norm_far_out(norm: float) -> None:
    results = [examples.result(f"c{index}", norms={"clip_l": [1 + index / 100]}) for index in range(20)]
    found = flags([*results, examples.result("far", norms={"clip_l": [norm]})], {})
    assert [flag.kind for flag in found.pop("far")] == ["norm"]
    assert found == {}


def test_a_few_words_say_nothing_about_norms() -> None:
    results = [examples.result(f"c{index}", norms={"clip_l": [1.0]}) for index in range(4)]
    assert flags([*results, examples.result("far", norms={"clip_l": [9.0]})], {}) == {}


def test_equal_norms_leave_room() -> None:
    results = [examples.result(f"c{index}", norms={"clip_l": [1.0]}) for index in range(20)]
    assert flags([*results, examples.result("near", norms={"clip_l": [1.3]})], {}) == {}
