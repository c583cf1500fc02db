"""Arrays as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors.numpy


def to_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with arrays of any memory layout.

    `safetensors.numpy.save` (0.8) writes the memory as it lies: of a transposed or sliced array it makes another one,
    and says nothing.
    """
    rows_first = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(rows_first, None if metadata is None else dict(metadata))
