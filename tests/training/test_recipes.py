"""The comparison of recipes: what runs, and what is read off it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from tests.support import drawings
from textinv_ray.inversion.encoder_loading import load_encoder
from textinv_ray.inversion.scoring import Scorer
from training import evaluate, recipes, unet
from training.common import BUILD, MODELS
from training.recipes import FINISHED, RECIPES
from training.world import HELDOUT_STYLES, TRAINING_STYLES


def test_every_recipe_is_one_that_the_trainer_knows() -> None:
    parser = unet.arguments("", BUILD)
    for options in RECIPES.values():
        parser.parse_args(options)


def test_unknown_recipes_are_refused() -> None:
    assert recipes.some_recipes("fresh,rate") == ["fresh", "rate"]
    with pytest.raises(argparse.ArgumentTypeError, match="'fast': name some of shipped, average"):
        recipes.some_recipes("fast")


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / FINISHED).touch()
    recipes.train("shipped", tmp_path, minutes=20)
    assert not (tmp_path / "output.txt").exists()


@pytest.mark.slow
def test_a_run_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model stands where a run has written its own."""
    known = TRAINING_STYLES[:5]
    drawings.write(tmp_path / "drawings")
    drawings.write(tmp_path / "drawings" / "heldout", (*known, *HELDOUT_STYLES), views=12)
    drawings.write(tmp_path / "drawings" / "edited", known, views=8)
    monkeypatch.setattr(evaluate, "BUILD", tmp_path)
    monkeypatch.setattr(recipes, "LEARNED", 1)
    monkeypatch.setattr(recipes, "STEPS", 2)
    points = [
        {
            "step": step,
            "samples": 32 * step,
            "heldout": round(0.2 - step / 100, 2),
            "by_noise": [0.1, 0.2, 0.3, 0.4],
        }
        for step in (5, 7, 9)
    ]
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    (tmp_path / "mini-sd").symlink_to(MODELS / "mini-sd")
    scorer, judge = Scorer.load(str(MODELS / "mini-clip")), load_encoder(str(MODELS / "mini-judge"))
    with torch.random.fork_rng():
        found = recipes.measured(tmp_path, evaluate.Heldout(), scorer, judge)
    assert (found["samples"], found["loss at first"], found["loss"]) == (128, 0.15, 0.11)
    assert -1 < found["clip"] < 1
    assert -1 < found["judge"] < 1
    assert -1 < found["word"] < 1
    assert len(found["edits"]) == len(evaluate.EDITS)
    assert [0 <= share <= 1 for share in found["styles"]] == [True] * len(HELDOUT_STYLES)
    assert (tmp_path / "captions.png").exists()
    columns = [column.header for column in recipes.table({"rate": found}).columns]
    assert columns == ["recipe", "options", *found]
