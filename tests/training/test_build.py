"""Drawings that are carried to where there is no Node.js."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.build import DICEBEAR, pack, render, svgs, unpack
from training.common import BUILD, Data
from training.minutes import ROOT
from training.sdxl import Views
from training.world import STYLES, draw_identity, draw_view, put_on_glasses


def drawing(shade: int) -> tuple[str, str]:
    rect = f'<rect width="8" height="8" fill="#{shade:02x}0000"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{rect}</svg>'
    return svg, json.dumps({"shade": shade})


def test_carried_drawings_become_the_same_pixels_and_rows(tmp_path: Path) -> None:
    sets = [[3, 200], [7, 90, 255]]
    path, folders = tmp_path / "drawings.xz", [tmp_path / "heldout", tmp_path / "training"]
    pack(path, [(len(shades), map(drawing, shades)) for shades in sets])
    unpack(path, folders)
    assert not list(tmp_path.rglob("data.npy"))
    for folder, shades in zip(folders, sets, strict=True):
        images = np.load(folder / "images.npy")
        assert images.shape == (len(shades), 64, 64, 3)
        assert images[:, 0, 0].tolist() == [[shade, 0, 0] for shade in shades]
        assert [
            json.loads(row)["shade"] for row in (folder / "rows.jsonl").read_text().splitlines()
        ] == shades


@pytest.mark.skipif(not (DICEBEAR / "node_modules").exists(), reason="needs the drawings' packages")
def test_what_is_composed_is_drawn() -> None:
    """Sunglasses are dark where the style says that the eyes are; around a round face there is the background."""
    rng = np.random.default_rng(0)
    straight = {"rotate": 0, "scale": 100, "translateX": 0, "translateY": 0, "flip": False}
    for style, lenses in ((name, spec.lenses) for name, spec in STYLES.items() if spec.lenses):
        view = draw_view(draw_identity(style, rng), rng, accessories=0)
        view["options"] |= straight
        put_on_glasses(lenses, view, dark=True)
        plain, worn = svgs(
            {"style": style, "options": view["options"], "over": over} for over in ("", view["over"])
        )
        assert plain != worn
        size, image = float(worn.split('viewBox="0 0 ')[1].split()[0]), render(worn, 200)
        for left, top in (lenses[:2], lenses[2:4]):
            assert image[int(200 * top / size), int(200 * left / size)].max() < 60, style

    face = (
        draw_view(draw_identity("funEmoji", rng), rng)["options"] | straight | {"backgroundColor": ["0000ff"]}
    )
    (svg,) = svgs([{"style": "funEmoji", "options": face, "disc": "ffff00"}])
    image = render(svg)
    assert image[2, 2].tolist() == [0, 0, 255]
    assert image[12, 32].tolist() == [255, 255, 0]


@pytest.mark.slow
def test_pixels_are_made_as_trainers_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = BUILD / "drawings"
    pack(tmp_path / "drawings.xz", [(7, map(drawing, range(0, 210, 30)))])
    unpack(tmp_path / "drawings.xz", [folder], redrawn=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "training.pixels"], check=True, env=environment)
    for kind in (Data, Views):
        data = kind(folder)
        np.testing.assert_array_equal(np.load(data.made), data.pixels(range(7)))
