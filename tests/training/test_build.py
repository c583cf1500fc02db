"""Drawings that are carried to where there is no Node.js."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from training.build import pack, unpack


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
