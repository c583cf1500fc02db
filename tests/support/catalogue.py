"""Words that follow from image features: catalogues that a predictor can be fitted on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from textinv_ray.concepts.image_features import ImageFeatures
from textinv_ray.concepts.predictor import Example

SIZES = {"clip_l": 32}


def examples(
    count: int,
    vectors: int = 1,
    sizes: Mapping[str, int] = SIZES,
    scorer: str = "clip",
    model: str = "model-1",
    dim: int = 16,
    first: int = 0,
) -> list[Example]:
    """Concepts c0, c1, ..., from `first` on: each word is one linear map of its features, the same in all calls."""
    maps = np.random.default_rng(7)
    weights = {name: maps.normal(size=(dim, 4 * size)) for name, size in sizes.items()}
    made = []
    for index in range(first, first + count):
        images = np.random.default_rng(index).normal(size=(2 + index % 3, dim)).astype(np.float32)
        word = {
            name: (images.mean(axis=0) @ weights[name][:, : vectors * size])
            .reshape(vectors, size)
            .astype(np.float32)
            for name, size in sizes.items()
        }
        made.append(Example(f"c{index}", word, ImageFeatures(images, scorer, model)))
    return made
