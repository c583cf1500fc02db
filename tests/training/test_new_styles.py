"""Settings compared by drawing styles that nothing else has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import drawings
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.scoring import Scorer
from training import evaluate, new_styles
from training.build import DICEBEAR
from training.common import MODELS
from training.evaluate import StyleImages
from training.world import TRAINING_STYLES


def images_of(seed: int) -> StyleImages:
    drawn = np.random.default_rng(seed).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    return drawn[:5], drawn[5:]


@pytest.mark.slow
def test_every_style_has_a_share_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings.write(tmp_path / "drawings", TRAINING_STYLES[:3])
    monkeypatch.setattr(evaluate, "BUILD", tmp_path)
    styles = {"dots": images_of(1), "Noise": images_of(2)}
    asked: set[str] = set()
    sample_images = evaluate.sample_images

    def noted(*arguments: Any) -> np.ndarray:
        asked.update(arguments[1])
        return sample_images(*arguments)

    monkeypatch.setattr(evaluate, "sample_images", noted)
    found = evaluate.measure_styles(
        load_backbone(str(MODELS / "mini-sd")),
        Scorer.load(str(MODELS / "mini-clip")),
        styles,
        JobConfig.load("mini", ["stopping.rule=none", "training.steps=2"]),
        tmp_path,
        seeds=2,
        per_prompt=1,
    )
    assert asked == {f"<style-{name}-s{seed}>" for name in ("dots", "noise") for seed in (0, 1)}
    assert (found["optimizer"], found["lr_schedule"], found["learning_rate"]) == (
        "directional",
        "cosine",
        0.3,
    )
    assert list(found["style_share"]) == list(found["style_similarity"]) == list(styles)
    assert all(0 <= share <= 1 for share in found["style_share"].values())
    assert all(-1 <= similarity <= 1 for similarity in found["style_similarity"].values())
    assert (tmp_path / "styles.png").exists()


@pytest.mark.skipif(not (DICEBEAR / "node_modules").exists(), reason="needs the drawings' packages")
def test_characters_of_a_style_differ_and_come_from_the_seed() -> None:
    first, again = (new_styles.draw("lorelei", np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (new_styles.CHARACTERS, 64, 64, 3)
    assert np.array_equal(first, again)
    assert len(np.unique(first.reshape(len(first), -1), axis=0)) == len(first)
