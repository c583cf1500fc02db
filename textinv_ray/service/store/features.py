"""Files of features: what identity retrieval needs of a concept's pictures, so that nobody encodes them again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from textinv_ray.concepts.retrieval import Features
from textinv_ray.util import tensor_files

FILE = "features.safetensors"
"""Name of a concept's file."""


def to_bytes(features: Mapping[str, Features]) -> bytes:
    """A safetensors file of features by encoder; those of different encoders can't be compared."""
    tensors: dict[str, np.ndarray] = {}
    for encoder, found in features.items():
        tensors[f"{encoder}/pictures"] = found.pictures.astype(np.float16)
        tensors[f"{encoder}/views"] = found.views.astype(np.float32)
    return tensor_files.to_bytes(tensors)


def from_bytes(data: bytes) -> dict[str, Features]:
    """The inverse of `to_bytes`. Raises ValueError for another file, and for features that can't be compared."""
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # safetensors raises its own, and what NumPy finds wrong with a type
        raise ValueError(f"it can't be read: {type(error).__name__}") from None
    found = {}
    for encoder in dict.fromkeys(name.rpartition("/")[0] for name in tensors):
        pictures, views = tensors.get(f"{encoder}/pictures"), tensors.get(f"{encoder}/views")
        if (
            pictures is None
            or views is None
            or pictures.ndim != 2
            or pictures.shape[1:] != views.shape
            or not (np.isfinite(pictures).all() and np.isfinite(views).all())
        ):
            raise ValueError("its features are damaged")
        found[encoder] = Features(pictures.astype(np.float32), views)
    return found
