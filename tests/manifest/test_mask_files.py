"""Which files are masks of which images (what `textinv manifest` makes of them: test_build.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from textinv_ray.manifest.mask_files import MaskFiles


@pytest.mark.parametrize("name", ["1-masklabel.png", "1_mask.jpg", "1.mask.webp", "1mask.png", "1-MASK.PNG"])
def test_a_mask_beside_its_image(name: str) -> None:
    masks = MaskFiles(["1.png", "2.png", name])
    assert masks.take(Path("1.png")) is None
    assert masks.take(Path(name)) == ""
    assert masks.of([Path("2.png"), Path("1.png")]) == [None, Path(name)]


@pytest.mark.parametrize("name", ["mask.png", "gas-mask.png", "unmasked.png", "2-mask.png"])
def test_a_picture_of_a_mask_is_an_image(name: str) -> None:
    assert MaskFiles(["1.png", name]).take(Path(name)) is None


def test_what_belongs_to_an_image_and_is_no_mask() -> None:
    said = MaskFiles(["1.png", "1-condlabel.png"]).take(Path("1-condlabel.png"))
    assert said == "a conditioning image, which the method has no use for"


def test_a_folder_of_masks() -> None:
    masks = MaskFiles(["1.png", "2.png", "1-mask.png"])
    masks.add(Path("mask/1.png"))
    masks.take(Path("1-mask.png"))
    masks.add(Path("mask/2.webp"))
    masks.add(Path("mask/3.png"))
    images = [Path("1.png"), Path("2.png")]
    assert masks.of(images) == [Path("1-mask.png"), Path("mask/2.webp")]
    assert masks.without_image(images) == [Path("mask/3.png")]
