"""The manifest of held-out characters and styles: sound, and with all that the experiments use."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from textinv_ray.concepts import prepare
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from training import evaluate, heldout
from training.build import DICEBEAR, heldout_identities, heldout_views, row_of
from training.heldout import other_identities
from training.tokenizer import load
from training.world import HELDOUT_STYLES


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All held-out views, with pixels that tell the views apart."""
    folder = tmp_path / "drawings" / "heldout"
    folder.mkdir(parents=True)
    views = list(heldout_views())
    pixels = np.zeros((len(views), 64, 64, 3), np.uint8)
    pixels[:] = np.arange(len(views)).reshape(-1, 1, 1, 1) % 251
    np.save(folder / "images.npy", pixels)
    with open(folder / "rows.jsonl", "w") as lines:
        lines.writelines(json.dumps(row_of(*view)) + "\n" for view in views)
    monkeypatch.setattr(evaluate, "BUILD", tmp_path)
    return tmp_path


@pytest.fixture
def written(data: Path) -> Path:
    """A manifest of all of it."""
    path = data / "heldout.parquet"
    heldout.main(["-n", "100", "--styles", "-o", str(path)])
    return path


def test_with_another_first_others_are_taken(data: Path) -> None:
    taken = []
    for first in (0, 2):
        heldout.main(["-n", "24", "--first", str(first), "-o", str(data / "part.parquet")])
        taken.append({row["concept_id"] for row in Manifest.open(str(data / "part.parquet")).rows()})
    assert [len(ids) for ids in taken] == [24, 24]
    assert not taken[0] & taken[1]


def test_the_manifest_is_sound_and_every_caption_fits(written: Path) -> None:
    config, source = JobConfig.load("mini"), Manifest.open(str(written))
    checks.check(source, config, {"clip_l": load()})
    rows = {row["concept_id"]: row for row in source.rows()}
    assert len(rows) == 100 + len(HELDOUT_STYLES)
    tokenizer = load()
    for row in rows.values():
        assert len(row["captions"]) == len(row["images"]) == 5
        lengths = [len(ids) for ids in tokenizer(row["captions"]).input_ids]
        assert max(lengths) <= tokenizer.model_max_length, row["captions"]
    concept = prepare.make(
        rows["character-07"], config, base=source.base, resolution=64, model_identity="mini-sd"
    )
    assert concept.images[:, 0, 0, 0, 0].tolist() == [number % 251 for number in range(7 * 8, 7 * 8 + 5)]


def test_every_variant_of_the_ablation_can_run(written: Path) -> None:
    source = Manifest.open(str(written))
    runs = list(ablation.expand(source, JobConfig.load("mini"), list(ablation.VARIANTS), seeds=1, limit=1))
    assert len(runs) == len(ablation.VARIANTS)


def test_captions_leave_the_concept_to_the_word() -> None:
    row = {
        "style": "micah",
        "phrases": ["a black mohawk", "a red shirt"],
        "colours": {"skin": "tan", "hair": "black", "clothes": "red"},
        "expression": "angry",
        "accessory": "sunglasses",
        "background": "orange",
    }
    assert heldout.character_caption(row) == "a photo of an angry {} with sunglasses on an orange background"
    description = heldout.character_description(row)
    assert description == "a person with a black mohawk, a red shirt and tan skin in micah style"
    plain = {**row, "expression": None, "accessory": None, "background": None}
    assert heldout.character_caption(plain) == "a photo of a {}"
    assert heldout.style_caption(row) == (
        "a picture of a person with a black mohawk, a red shirt and tan skin on an orange background "
        "in the style of {}"
    )
    assert heldout.style_caption({**plain, "phrases": [], "colours": {}}).endswith(
        "person in the style of {}"
    )


def test_other_characters_are_unseen_and_different() -> None:
    found, known = other_identities(60), heldout_identities()
    assert all(identity.reserved for identity in found)
    assert not [identity for identity in found if identity in known]
    assert len({json.dumps(dataclasses.asdict(identity), sort_keys=True) for identity in found}) == 60
    assert found[:20] == other_identities(20)
    unseen = other_identities(20, HELDOUT_STYLES)
    assert [identity.style for identity in unseen] == 10 * [*HELDOUT_STYLES]
    assert not all(identity.reserved for identity in unseen), "of these styles no training saw anything"
    assert not [identity for identity in unseen if identity in known]


def test_views_may_share_a_background() -> None:
    identities = dict(enumerate(other_identities(2 * len(heldout.CHARACTER_STYLES))))
    for plain, same in zip(
        heldout.draw_views(identities, 4), heldout.draw_views(identities, 4, 3), strict=True
    ):
        colours = [view["options"].get("backgroundColor") for *_, view in same]
        assert colours[0] == colours[1] == colours[2]
        assert len({view["background"] for *_, view in same[:3]}) == 1
        assert (plain[0], plain[3]) == (same[0], same[3])
        assert [view["expression"] for *_, view in plain] == [view["expression"] for *_, view in same]


@pytest.mark.skipif(not (DICEBEAR / "node_modules").exists(), reason="needs the drawings' packages")
def test_masks_show_the_character(tmp_path: Path) -> None:
    path, styles = tmp_path / "masked.parquet", ["micah", "funEmoji"]
    options = ["-n", "2", "--others", "--masks", "--same-background", "3", "--drawn-in", *styles]
    heldout.main([*options, "-o", str(path)])
    source, config = Manifest.open(str(path)), JobConfig.load("mini")
    checks.check(source, config, {"clip_l": load()})
    for row, style in zip(source.rows(), styles, strict=True):
        assert row["tags"]["drawn_in"] == style
        concept = prepare.make(row, config, base=source.base, resolution=64, model_identity="mini-sd")
        assert concept.masks is not None
        corners = concept.masks[:, 0, :8, :8]
        images = concept.images[:3, 0, 0, 0]
        assert len(np.unique(images, axis=0)) == 1
        if style == "micah":
            assert corners.max() == 0
            assert concept.masks[:, 0, 28:36, 28:36].min() == 255
        else:
            assert concept.masks.min() == 255
