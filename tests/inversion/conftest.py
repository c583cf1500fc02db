"""Backbones of the tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from textinv_ray.inversion.backbone import Backbone


@pytest.fixture(scope="session")
def backbone(tiny_sd: Path) -> Backbone:
    """float32, epsilon-prediction, on the CPU."""
    return Backbone.load(str(tiny_sd), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def backbone_v(tiny_sd_v: Path) -> Backbone:
    """float32, v-prediction, on the CPU."""
    return Backbone.load(str(tiny_sd_v), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def backbone64(tiny_sd: Path) -> Backbone:
    """float64, so that equal mathematics gives equal numbers whatever is batched with what."""
    backbone = Backbone.load(str(tiny_sd), device="cpu", dtype="float32")
    for model in (backbone.text_encoder, backbone.unet, backbone.vae):
        model.to(torch.float64)
    return backbone


@pytest.fixture
def checkpointing(backbone: Backbone) -> Iterator[Backbone]:
    """The float32 backbone, which keeps all activations again when the test is over."""
    yield backbone
    backbone.unet.disable_gradient_checkpointing()
