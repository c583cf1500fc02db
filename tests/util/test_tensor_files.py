"""Arrays come back from a file as they were, however they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from textinv_ray.util import tensor_files

PACKAGE = Path(tensor_files.__file__).parents[1]


@pytest.mark.parametrize(
    "layout",
    [np.asfortranarray, lambda array: array.T, lambda array: array[:, 1:3], lambda array: array[::-1]],
    ids=["columns first", "transposed", "sliced", "reversed"],
)
def test_layouts_of_memory(layout: Callable[[np.ndarray], np.ndarray]) -> None:
    array = layout(np.arange(12, dtype=np.float32).reshape(3, 4))
    found = safetensors.numpy.load(tensor_files.to_bytes({"a": array}))["a"]
    np.testing.assert_array_equal(found, array)


def test_nothing_else_writes_arrays() -> None:
    writers = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "safetensors.numpy.save(" in path.read_text()
    ]
    assert writers == ["util/tensor_files.py"]
