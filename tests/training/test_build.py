"""Drawings that are carried to where there is no Node.js."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.build import pack, unpack
from training.common import BUILD, Data
from training.minutes import ROOT
from training.sdxl import Views


def drawing(shade: int) -> tuple[str, str]:
    rect = f'<rect width="8" height="8" fill="#{shade:02x}0000"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{rect}</svg>'
    return svg, json.dumps({"shade": shade})


def test_carried_drawings_become_the_same_pixels_and_rows(tmp_path: Path) -> None:
    sets = [[3, 200], [7, 90, 255]]
    path, folders = tmp_path / "drawings.xz", [tmp_path / "heldout", tmp_path / "training"]
    pack(path, [(len(shades), map(drawing, shades)) for shades in sets])
    unpack(path, folders)
    for folder, shades in zip(folders, sets, strict=True):
        images = np.load(folder / "images.npy")
        assert images.shape == (len(shades), 64, 64, 3)
        assert images[:, 0, 0].tolist() == [[shade, 0, 0] for shade in shades]
        assert [json.loads(row)["shade"] for row in (folder / "rows.jsonl").open()] == shades


@pytest.mark.slow
def test_pixels_are_made_as_trainers_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = BUILD / "drawings"
    pack(tmp_path / "drawings.xz", [(7, map(drawing, range(0, 210, 30)))])
    unpack(tmp_path / "drawings.xz", [folder])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "training.pixels"], check=True, env=environment)
    for kind in (Data, Views):
        data = kind(folder)
        np.testing.assert_array_equal(np.load(data.made), data.pixels(range(7)))
