"""`image_features.safetensors`: what the scoring model makes of a concept's training images.

A predictor of words is fitted on these and the learned words: see `predictor.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from textinv_ray.util import tensor_files

FILE = "image_features.safetensors"
_TENSOR, _METADATA = "images", "textinv_ray"


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of one concept's training images, and what they depend on."""

    images: np.ndarray
    """float32 (N, d): of each image, the mean over its crops of the scoring model's features of length 1."""
    scorer: str
    """`scoring.model`, without credentials. Features of another one can't be compared with these."""
    model: str
    """Identity of the weights that the word was learned for: `Concept.model_identity`."""

    def to_bytes(self) -> bytes:
        """A safetensors file; the features are rounded to 16 bits."""
        note = json.dumps({"scorer": self.scorer, "model": self.model})
        return tensor_files.to_bytes({_TENSOR: self.images.astype(np.float16)}, {_METADATA: note})

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageFeatures:
        """The inverse of `to_bytes`. Raises ValueError for another file, and for one that is damaged."""
        try:
            images = safetensors.numpy.load(data)[_TENSOR].astype(np.float32)
            note = json.loads(metadata(data)[_METADATA])
            found = cls(images, str(note["scorer"]), str(note["model"]))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"it can't be read: {type(error).__name__}") from None
        if images.ndim != 2 or not len(images) or not np.isfinite(images).all():
            raise ValueError("its features are damaged")
        return found


def metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file's bytes. Raises ValueError when it isn't one."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(found, dict):
        raise ValueError("it has no metadata")
    return found
