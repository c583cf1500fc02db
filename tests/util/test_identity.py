"""Keys that are compared by identity."""

from __future__ import annotations

from functools import cache

from textinv_ray.util.identity import ById


def test_a_cache_tells_equal_values_apart() -> None:
    calls: list[list[int]] = []

    @cache
    def length(key: ById[list[int]]) -> int:
        calls.append(key.value)
        return len(key.value)

    one, equal = [1, 2], [1, 2]
    assert [length(ById(value)) for value in (one, one, equal, one)] == [2, 2, 2, 2]
    assert len(calls) == 2
    assert (calls[0] is one, calls[1] is equal) == (True, True)
    assert ById(one) != one
