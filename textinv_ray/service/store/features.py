"""`features.safetensors`: what identity retrieval needs of a concept's pictures, so that nobody encodes them again."""

from __future__ import annotations

import numpy as np
import safetensors.numpy

from textinv_ray.concepts.retrieval import Features

FILE = "features.safetensors"
_ENCODER = "encoder "


def to_bytes(features: Features, encoder: str) -> bytes:
    """A safetensors file. `encoder`: the model that made the features; those of others can't be compared with them."""
    tensors: dict[str, np.ndarray] = {
        f"{_ENCODER}{encoder}/pictures": features.pictures.astype(np.float16),
        f"{_ENCODER}{encoder}/views": features.views.astype(np.float32),
    }
    return safetensors.numpy.save(tensors)


def from_bytes(data: bytes) -> tuple[str, Features]:
    """(encoder, features) of a file. Raises ValueError for another file, and for features that can't be compared."""
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # safetensors raises its own, and what NumPy finds wrong with a type
        raise ValueError(f"it can't be read: {type(error).__name__}") from None
    names = {name.rpartition("/")[0] for name in tensors}
    if len(names) != 1:
        raise ValueError("it has no features of one encoder")
    (name,) = names
    pictures, views = tensors.get(f"{name}/pictures"), tensors.get(f"{name}/views")
    if (
        pictures is None
        or views is None
        or pictures.ndim != 2
        or pictures.shape[1:] != views.shape
        or not (np.isfinite(pictures).all() and np.isfinite(views).all())
    ):
        raise ValueError("its features are damaged")
    return name.removeprefix(_ENCODER), Features(pictures.astype(np.float32), views)
