"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with random weights: epsilon-prediction, 16 pixels."""
    return tiny.save_stable_diffusion(tmp_path_factory.mktemp("tiny-sd"))


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with v-prediction."""
    return tiny.save_stable_diffusion(tmp_path_factory.mktemp("tiny-sd-v"), "v_prediction")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel folder with its processor and random weights."""
    return tiny.save_clip(tmp_path_factory.mktemp("tiny-clip"))
