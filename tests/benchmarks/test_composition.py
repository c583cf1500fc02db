"""benchmarks/composition.py: what it computes, and the whole at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import composition
from tests.support import examples
from textinv_ray.service.store.store import Store


@pytest.fixture
def words_of_two_kinds(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Store:
    """Two objects and a style."""
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    for index, (concept_id, kind) in enumerate((("a", "object"), ("b", "object"), ("s", "style"))):
        vectors = torch.randn(1, 32, generator=torch.Generator().manual_seed(index)).tolist()
        examples.finish(store, concept_id, vectors, learnable_property=kind)
    return store


def test_composition_to_its_end(
    words_of_two_kinds: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, grid = tmp_path / "figures.json", tmp_path / "grid.png"
    composition.main([words_of_two_kinds.uri, "--samples", "4", "--json", str(figures), "--grid", str(grid)])
    content = json.loads(figures.read_text())
    assert [(pair["object"], pair["style"]) for pair in content["pairs"]] == [("<a>", "<s>"), ("<b>", "<s>")]
    found = content["summary"]["all"]
    gains = [pair["both_to_style"] - pair["object_to_style"] for pair in content["pairs"]]
    assert found["gain_on_style_images"][0] == pytest.approx(np.mean(gains), abs=1e-5)
    assert "2 pairs of 2 objects" in capsys.readouterr().out
    assert np.asarray(Image.open(grid)).shape == (18 + 2 * 32, composition.LABEL + 8 * 32 + 16, 3)


def test_composition_works_where_both_words_gain() -> None:
    """Written out: two objects, of which one gains on the object's images only."""
    none = np.zeros((1, 1, 1, 3), np.uint8)

    def pair(name: str, on_object: float, on_style: float) -> composition.Pair:
        subject = composition.LearnedConcept(name, {"clip_l": np.zeros((1, 2), np.float32)}, "object", none)
        drawn = composition.Drawn(subject, torch.zeros(1, 2), none, torch.zeros(1, 2))
        scores = {
            f"{prompt}_to_{whose}": 0.5
            for prompt in ("both", "object", "style")
            for whose in ("object", "style")
        }
        scores |= {"both_to_object": 0.5 + on_object, "both_to_style": 0.5 + on_style}
        return composition.Pair(drawn, drawn, none, scores)

    found = composition.summary([pair("<a>", 0.2, 0.1), pair("<b>", 0.1, -0.1)])
    assert found["both_gain"] == 0.5
    assert found["gain_on_object_images"][0] == pytest.approx(0.15)
    assert found["gain_on_style_images"][0] == pytest.approx(0.0)
    assert "+0.150" in composition.text(found)


def test_an_output_without_styles_is_refused(words_of_two_kinds: Store) -> None:
    words_of_two_kinds.fs.rm(words_of_two_kinds.path("concepts", "s"), recursive=True)
    with pytest.raises(SystemExit, match="has no styles"):
        composition.main([words_of_two_kinds.uri])
