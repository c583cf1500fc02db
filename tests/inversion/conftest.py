"""Backbones of the tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import tiny
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion


@pytest.fixture(scope="session")
def backbone(tiny_sd: Path) -> StableDiffusion:
    """float32, epsilon-prediction, on the CPU."""
    return tiny.load_sd(tiny_sd)


@pytest.fixture(scope="session")
def backbone_v(tiny_sd_v: Path) -> StableDiffusion:
    """float32, v-prediction, on the CPU."""
    return tiny.load_sd(tiny_sd_v)


@pytest.fixture(scope="session")
def backbone64(tiny_sd: Path) -> StableDiffusion:
    """float64, so that equal mathematics gives equal numbers whatever is batched with what."""
    backbone = tiny.load_sd(tiny_sd)
    for model in backbone.models:
        model.to(torch.float64)
    return backbone


@pytest.fixture
def checkpointing(backbone: StableDiffusion) -> Iterator[StableDiffusion]:
    """The float32 backbone, which keeps all activations again when the test is over."""
    yield backbone
    backbone.unet.disable_gradient_checkpointing()
