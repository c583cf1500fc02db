"""Words that diffusers would take for another word's second vector."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.tables import Write, good, problems


@pytest.mark.parametrize(
    ("tokens", "columns", "found"),
    [
        (["<cat>", "<cat>_1"], {"num_vectors": [2, 1]}, [1]),
        (["<cat>_1", "<CAT>"], {"num_vectors": [1, 2]}, [0]),
        (["<cat>", "<cat>_1", "<cat>_2", "<cat>_3"], {"num_vectors": [3, 1, 1, 1]}, [1, 2]),
        (["<cat>", "<cat>_1"], {"num_vectors": [1, 4]}, []),
        (["<cat>", "<cat>_1"], {}, []),
        (["<cat>", "<cat>_1"], {"vectors_added_at": [[2], None], "steps": [9, 9]}, [1]),
        (["<cat>", "<cat_1>"], {"num_vectors": [2, 1]}, []),
        (["<cat>", "<cat>_0"], {"num_vectors": [2, 1]}, []),
        ([None, "<c0>_1"], {"num_vectors": [2, 1]}, [1]),
    ],
)
def test_collisions(
    write: Write, tokens: list[str | None], columns: dict[str, Any], found: list[int]
) -> None:
    path = write(**{**good(len(tokens)), "placeholder_token": tokens, **columns})
    said = problems(path)
    assert [line.split(" (")[0] for line in said] == [f"row {row}" for row in found], said
    assert all("is what diffusers calls vector" in line for line in said)
