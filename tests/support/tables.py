"""Manifests for tests: sound columns to change, and the problems that are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest

CONFIG = JobConfig.load("mini", ["training.steps=200"])
WITHOUT_DEFAULT = JobConfig.load("mini", ["training.initializer_token=null"])
Write = Callable[..., str]


def good(count: int = 3, **columns: Any) -> dict[str, Any]:
    """Columns of `count` rows without problems; `columns` are added or replaced."""
    base = {"concept_id": [f"c{i}" for i in range(count)], "images": [[f"{i}.png"] for i in range(count)]}
    return {**base, "initializer_token": ["cat"] * count, **columns}


def problems(
    path: str, config: JobConfig = CONFIG, tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None
) -> list[str]:
    """All problems of a manifest, as its messages have them."""
    opened = Manifest.open(path, check_schema=False)
    return [str(problem) for problem in checks.problems(opened, config, tokenizers)]
