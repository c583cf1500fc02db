"""How mini-sdxl's trainer shows drawings, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import drawings
from training import sdxl, unet
from training.common import CPU, Data
from training.sdxl import SMALLEST, View, Views, view


def test_a_third_of_the_drawings_is_changed() -> None:
    views = [view(index) for index in range(600)]
    assert views == [view(index) for index in range(600)]
    small = [shown for shown in views if shown.side < 64]
    cropped = [shown for shown in views if shown.shown > 64]
    assert len(small) == len(cropped) == 100
    assert min(shown.side for shown in small) >= SMALLEST
    assert any(shown.top != shown.left for shown in cropped)
    for shown in cropped:
        assert 0 <= shown.top <= shown.shown - 64
        assert 0 <= shown.left <= shown.shown - 64
    whole = [shown for shown in views if shown.side >= 64 and shown.shown == 64]
    assert {shown.size[2:] for shown in whole} == {(0, 0, 64, 64)}


def test_sizes_say_what_pixels_show(tmp_path: Path) -> None:
    folder = drawings.write(tmp_path)
    whole, views = Data(folder), Views(folder)
    for index, (before, after) in enumerate(
        zip(whole.pixels(range(len(whole))), views.pixels(range(len(views))), strict=True)
    ):
        shown = view(index)
        height, width, top, left, *target = shown.size
        assert height == width == shown.side
        assert target == [64, 64]
        assert after.shape == (64, 64, 3)
        if index % 6 > 1:
            np.testing.assert_array_equal(after, before)
        else:
            large = Image.fromarray(before)
            if shown.side < 64:
                large = large.resize((shown.side, shown.side), Image.Resampling.BOX)
            large = large.resize((shown.shown, shown.shown), Image.Resampling.BICUBIC)
            expected = np.asarray(large)[top : top + 64, left : left + 64]
            np.testing.assert_array_equal(after, expected)


def test_a_crop_shows_its_part() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[32:, 32:] = 255
    assert View(64, 128, 64, 64).apply(pixels)[8:, 8:].min() > 250
    assert View(64, 128, 0, 0).apply(pixels)[:-8, :-8].max() < 5


@pytest.mark.slow
def test_training_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings.write(tmp_path / "drawings" / "heldout")
    drawings.write(tmp_path / "drawings")
    for module in (sdxl, unet):
        monkeypatch.setattr(module, "BUILD", tmp_path)
    monkeypatch.setattr(sdxl, "FOLDER", tmp_path / "sdxl")
    monkeypatch.setattr(sdxl, "PRESETS", {"cpu": CPU})
    monkeypatch.setattr(unet, "PRESETS", {"cpu": replace(CPU, unet_batch=4)})

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["sdxl", "--trial", "--folder", str(tmp_path / "sdxl"), *arguments])
        sdxl.main()

    run("--encode")
    moments = np.load(tmp_path / "sdxl" / "moments.npy")
    assert np.isfinite(moments).all()
    assert (np.abs(moments.astype(np.float32)).sum((1, 2, 3)) > 0).all()
    run("--steps", "2")
    run("--steps", "4")
    curve = [json.loads(line) for line in (tmp_path / "sdxl" / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [0, 2, 2, 4]
    assert torch.isfinite(torch.tensor([point["heldout"] for point in curve])).all()
    assert (tmp_path / "sdxl" / "mini-sdxl" / "unet" / "config.json").exists()
