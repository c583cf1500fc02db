"""Fixtures that tests of several benchmarks share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.commands import as_options


@pytest.fixture
def settings(tiny_sd: Path, tiny_clip: Path) -> list[str]:
    """Settings of a job with the models of the tests."""
    values = [f"model.path={tiny_sd}", f"scoring.model={tiny_clip}", "review.num_inference_steps=2"]
    values += ['scoring.edit_prompts.style=["a cat in the style of {}"]']  # short, for a short tokenizer
    values += ["training.steps=4", "training.initializer_token=cat", "pack.size=2", "tracking.enabled=false"]
    return as_options(values)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """Two concepts of two pictures."""
    rng, rows = np.random.default_rng(0), []
    for name in ("one", "two"):
        paths = [str(tmp_path / f"{name}-{number}.png") for number in range(2)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        rows.append({"concept_id": name, "images": paths, "initializer_token": "cat"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    return str(tmp_path / "m.parquet")
