"""The lines of the README for a notebook, as they stand there but for the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def test_ten_lines(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{index}.png")
    model, images = str(tiny_sd), ["0.png", "1.png", "2.png"]

    from textinv_ray.concepts import prepare
    from textinv_ray.config.job import JobConfig
    from textinv_ray.inversion import Backbone, ConceptTask, Pack, sample_images, save_learned_embeds

    config = JobConfig.load("mini", ["training.steps=2", "review.num_inference_steps=2"])
    backbone = Backbone.load(model)
    row = {"concept_id": "cat", "images": images, "initializer_token": "cat"}
    concept = prepare.make(row, config, base=".", resolution=backbone.resolution, model_identity=model)
    task = ConceptTask(concept, backbone, config)
    pack = Pack(backbone, config, size=1)  # more tasks fit beside it
    pack.add(task)
    while pack.tasks:
        pack.step()
    pictures = sample_images(
        backbone, {"<cat>": task.vectors}, ["a photo of <cat>"] * 2, [0, 1], config.review
    )
    Path("learned_embeds.safetensors").write_bytes(save_learned_embeds("<cat>", task.vectors))

    assert task.done
    assert pictures.shape == (2, 16, 16, 3)
    assert Path("learned_embeds.safetensors").stat().st_size < 1000
