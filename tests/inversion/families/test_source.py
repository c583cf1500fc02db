"""Where a model is loaded from."""

from __future__ import annotations

import torch

from textinv_ray.inversion.families.source import Source


def test_weights_are_read_from_safetensors_only() -> None:
    source = Source("folder", "main", "fp16", torch.device("cpu"), torch.float32, "auto")
    part = {"pretrained_model_name_or_path": "folder", "subfolder": "vae", "revision": "main"}
    assert source.part("vae") == part
    assert source.weights("vae") == {**part, "variant": "fp16", "use_safetensors": True}
