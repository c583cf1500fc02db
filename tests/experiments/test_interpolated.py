"""Words on the way back to their initializers: what is scored, by whom, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import examples
from textinv_ray.concepts import interpolation
from textinv_ray.experiments import ablation, interpolated
from textinv_ray.experiments.interpolated import Models
from textinv_ray.inversion.review import Subject, review
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

WORD = np.random.default_rng(0).normal(0, 0.1, (1, 32)).astype(np.float32)


def test_each_share_of_each_run_is_scored_as_a_word_is(
    tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    """The word at a share is the spherical interpolation; the judge sees the same pictures."""
    source = Manifest.open(str(examples.write_manifest(tmp_path / "data", 2)))
    config = examples.config(tiny_sd, tiny_clip, "scoring.judge=mini-judge")
    store = Store(str(tmp_path / "out"))
    runs = {}
    for concept_id, seed in (("c0", "0"), ("c0", "1"), ("c1", "0")):
        run = f"{concept_id}.base.{seed}"
        examples.finish(store, run, (WORD * (1 + int(seed))).tolist())
        runs[concept_id, seed] = run
    concepts = list(ablation.concepts_of(source, {"c0", "c1"}, config))
    models = Models.load(config)
    found = interpolated.scores(store, concepts, runs, [0.25, 0.5], models, config)
    assert [(score.name, score.concept, score.seed) for score in found] == [
        (f"{share} towards the initializer", *key) for share in (0.25, 0.5) for key in runs
    ]
    assert {score.kind for score in found} == {"between"}

    end = {"clip_l": WORD * 2}
    start = {"clip_l": end["clip_l"][:, ::-1].copy()}
    moved = torch.tensor(interpolation.between(start, end, 0.75)["clip_l"])
    by_hand = Subject(dataclasses.replace(concepts[0], prompts=()), moved)
    (expected,) = review(models.backbone, models.scorer, [by_hand], config, judge=models.judge)
    (score,) = [
        one for one in found if one.name.startswith("0.25") and (one.concept, one.seed) == ("c0", "1")
    ]
    assert score.reconstruction == pytest.approx(expected.clip_image_similarity, abs=1e-4)
    assert score.editability == pytest.approx(expected.clip_text_similarity, abs=1e-4)
    assert score.judge == pytest.approx(expected.judge_similarity, abs=1e-4)
    assert score.reconstruction != pytest.approx(
        next(one for one in found if one.name.startswith("0.5") and one.seed == "1").reconstruction, abs=1e-6
    )

    assert interpolated.scores(store, concepts, runs, [], models, config) == []
    store.remove("concepts/c1.base.0/initial_embeds.safetensors")
    with pytest.raises(UserError, match=r"initial vectors of '<c1\.base\.0>' are not known"):
        interpolated.scores(store, concepts, runs, [0.5], models, config)


def test_shares_as_people_write_them() -> None:
    assert interpolated.parse("0.3, 0.15,0.3") == [0.15, 0.3]
    for text in ("", "0.1,x", "0.1;0.2"):
        with pytest.raises(UserError, match="is not a list of numbers"):
            interpolated.parse(text)
    for text in ("0", "0.2,1", "nan", "-0.1"):
        with pytest.raises(UserError, match="numbers between 0 and 1"):
            interpolated.parse(text)
