"""Words that follow from image features: catalogues that a predictor can be fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import examples as stored
from textinv_ray.concepts import image_features, predictor, word_files
from textinv_ray.concepts.image_features import ImageFeatures
from textinv_ray.concepts.predictor import Example
from textinv_ray.config.job import JobConfig
from textinv_ray.service.models import sources
from textinv_ray.service.store.store import Store

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


def output(folder: Path, catalogue: Sequence[Example], without: int = 0) -> str:
    """An output with these words. `without`: how many of them have no features, as in outputs of earlier versions."""
    store = Store(str(folder))
    for index, example in enumerate(catalogue):
        finish(store, example, index >= without)
    return store.uri


def predictor_file(path: Path, config: JobConfig) -> Path:
    """A predictor for the configuration's model and scorer, fitted on such words. Returns `path`."""
    identity = sources.facts(config.model).identity
    path.write_bytes(predictor.fit(examples(12, scorer=config.scoring.model, model=identity)).to_bytes())
    return path


def finish(store: Store, example: Example, with_features: bool = True, **changes: Any) -> None:
    """Makes it a concept of the store that is done. `changes`: to the fields of its result."""
    files = {word_files.STORED: word_files.store_word(f"<{example.concept_id}>", example.word)}
    if with_features:
        files[image_features.FILE] = example.features.to_bytes()
    if example.initial:
        files[word_files.INITIAL] = word_files.store_word(f"<{example.concept_id}>", example.initial)
    store.finish(stored.result(example.concept_id, **changes), files)
