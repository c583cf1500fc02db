"""`textinv manifest --protocol`: from a data set's own folders, checked for what is missing."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support import data_sets as made
from tests.support.commands import textinv
from textinv_ray.config import protocol
from textinv_ray.manifest.data_sets import with_captions
from textinv_ray.manifest.reader import Manifest


def test_dreambench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = made.dreambench(tmp_path / "clone"), tmp_path / "m.parquet"
    (folder / "dataset" / "other").mkdir()
    assert textinv("manifest", "--protocol", "dreambench", str(folder), "-o", str(out)) == 0
    rows = {row["concept_id"]: row for row in Manifest.open(str(out)).rows()}
    assert list(rows) == list(protocol.load("dreambench").subjects)
    assert rows["dog8"]["initializer_token"] == "dog"
    assert rows["dog8"]["images"][0] == "clone/dataset/dog8/00.jpg"
    assert rows["dog8"]["tags"] == {"protocol": "dreambench", "class": "dog", "group": "live"}
    said = capsys.readouterr().out
    assert "skipped: other: no subject of DreamBench" in said
    assert f"{out}: 30 concepts, 158 images" in said
    assert textinv("manifest", "--protocol", "dreambench", str(folder / "dataset"), "-o", str(out)) == 0


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = made.dreambench(tmp_path / "clone"), tmp_path / "m.parquet"
    shutil.rmtree(folder / "dataset" / "vase")
    (folder / "dataset" / "cat" / "00.jpg").unlink()
    assert textinv("manifest", "--protocol", "dreambench", str(folder), "-o", str(out)) == 2
    said = capsys.readouterr().err
    assert "this isn't all of DreamBench (git clone https://github.com/google/dreambooth, " in said
    assert "  cat: has 4 images, expected 5\n  vase: has no folder" in said
    assert not out.exists()
    assert textinv("manifest", "--protocol", "dreambench", str(tmp_path / "none"), "-o", str(out)) == 2
    assert "doesn't exist; DreamBench is not part of this package: git clone" in capsys.readouterr().err
    assert textinv("manifest", "--protocol", "paper", str(folder), "-o", str(out)) == 2
    assert "the protocol 'paper' has no data set" in capsys.readouterr().err


def test_customconcept101(tmp_path: Path) -> None:
    folder, out = made.customconcept101(tmp_path / "d"), tmp_path / "m.parquet"
    assert textinv("manifest", "--protocol", "customconcept101", str(folder), "-o", str(out), "--embed") == 0
    rows = {row["concept_id"]: row for row in Manifest.open(str(out)).rows()}
    assert len(rows) == 101
    assert rows["actionfigure_1"]["initializer_token"] == "action figure"
    assert {len(row["images"]) for row in rows.values()} == {1, 2}


def test_dreambench_plus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = made.dreambench_plus(tmp_path / "d"), tmp_path / "m.parquet"
    assert textinv("manifest", "--protocol", "dreambench_plus", str(folder), "-o", str(out)) == 0
    rows = {row["concept_id"]: row for row in Manifest.open(str(out)).rows()}
    assert len(rows) == 150
    one = rows["live_subject_animal_07_tiny_animal"]
    assert one["images"] == ["d/data/images/live_subject/animal/07.jpg"]
    assert Counter(row["learnable_property"] for row in rows.values()) == {"object": 120, "style": 30}
    definition = with_captions(protocol.load("dreambench_plus"), str(folder))
    assert definition.subjects.keys() == rows.keys()
    prompts = definition.prompts["live_subject_animal_07_tiny_animal"]["all"]
    assert prompts[2] == "A {} in place 2"
    assert len(prompts) == 9
    assert set(definition.groups) == {"animal", "human", "object", "style"}

    captions = folder / "data" / "captions" / "object"
    (captions / "03.txt").write_text("tiny object\nanother {brace} prompt\n")
    (captions / "04.txt").rename(captions / "99.txt")
    assert textinv("manifest", "--protocol", "dreambench_plus", str(folder), "-o", str(out)) == 2
    said = capsys.readouterr().err
    assert "captions/object/03.txt: has 2 lines, expected the subject and 9 prompts" in said
    assert "captions/object/99.txt: there is no such image below images" in said
