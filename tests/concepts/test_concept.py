"""A concept's image sizes and crops, as SDXL is told of them (Podell et al. 2023, section 2.2)."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support import tiny
from textinv_ray.concepts import prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig

SIDE = 16


def picture(width: int, height: int, orientation: int = 1) -> dict[str, Any]:
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), "red").save(buffer, "PNG", exif=exif)
    return {"bytes": buffer.getvalue(), "path": None}


def concept(*images: dict[str, Any], data: dict[str, Any] | None = None) -> Concept:
    row = {"concept_id": "rex", "images": list(images), "initializer_token": "dog"}
    config = JobConfig.from_dict({"data": data or {}})
    return prepare.make(row, config, base="/", resolution=SIDE, model_identity="model-1")


@pytest.mark.parametrize(
    ("width", "height", "orientation", "expected"),
    [
        (16, 16, 1, [16, 16, 0, 0, 16, 16]),
        (100, 100, 1, [100, 100, 0, 0, 16, 16]),
        (8, 8, 1, [8, 8, 0, 0, 16, 16]),
        (96, 48, 1, [48, 96, 0, 8, 16, 16]),
        (48, 96, 1, [96, 48, 8, 0, 16, 16]),
        (96, 48, 6, [96, 48, 8, 0, 16, 16]),
        (96, 48, 3, [48, 96, 0, 8, 16, 16]),
    ],
    ids=["square", "large", "small", "wide", "tall", "turned", "upside down"],
)
@pytest.mark.parametrize("flips", [False, True])
def test_time_ids_of_an_image(
    width: int, height: int, orientation: int, expected: list[int], flips: bool
) -> None:
    """The centre crop is its own mirror image's place."""
    found = concept(picture(width, height, orientation)).time_ids(flips)
    assert found.dtype == np.int64
    assert found.tolist() == [expected] * (1 + flips)


def test_time_ids_follow_the_order_of_the_latents() -> None:
    """Image by image, crop by crop, and each crop before its mirror image."""
    made = concept(
        picture(96, 48), picture(40, 40), picture(32, 80), data={"crop": "random", "crops_per_image": 4}
    )
    plain, both = made.time_ids(False), made.time_ids(True)
    assert plain.shape == (12, 6)
    assert both.shape == (24, 6)
    assert (both[::2] == plain).all()
    assert plain[:, :4].tolist() == [list(crop) for crops in made.crops for crop in crops]
    assert (plain[:4, :2] == [48, 96]).all()
    assert (plain[4:8, :4] == [40, 40, 0, 0]).all()
    assert (plain[8:, :2] == [80, 32]).all()
    assert (both[:, 4:] == SIDE).all()
    assert len({tuple(line) for line in plain[:4].tolist()}) > 1
    # The resized images are 32 x 16 and 16 x 40
    mirrored = both[1::2]
    assert (mirrored[:4, 3] == 32 - SIDE - plain[:4, 3]).all()
    assert (mirrored[8:] == plain[8:]).all(), "a mirror image's top is where it was"


def test_crops_depend_on_the_seed_alone() -> None:
    random = {"crop": "random", "crops_per_image": 4}
    images = picture(96, 48), picture(32, 80)
    one = concept(*images, data=random)
    assert one.crops == concept(*images, data=random).crops
    other = prepare.make(
        {"concept_id": "rex", "images": list(images), "initializer_token": "dog", "seed": 9},
        JobConfig.from_dict({"data": random}),
        base="/",
        resolution=SIDE,
        model_identity="model-1",
    )
    assert other.crops != one.crops


@given(width=st.integers(1, 300), height=st.integers(1, 300), share=st.floats(0, 1), side=st.integers(1, 64))
def test_mirrored_twice_is_the_same_place(width: int, height: int, share: float, side: int) -> None:
    """A crop's mirror image lies within the mirrored image, as far from the right as the crop was from the left."""
    resized = round(width * side / min(width, height))
    left = round(share * max(0, resized - side))
    images = np.zeros((1, 1, side, side, 3), np.uint8)
    made = tiny.concept(images=images, crops=(((height, width, 0, left),),))
    _, mirrored = made.time_ids(True).tolist()
    assert 0 <= mirrored[3] <= max(0, resized - side)
    again = tiny.concept(images=images, crops=(((height, width, 0, mirrored[3]),),))
    assert again.time_ids(True)[1, 3] == left


def test_images_without_a_note_of_crops_were_squares() -> None:
    """As concepts made by hand are."""
    made = tiny.concept()
    assert made.crops == ()
    assert made.time_ids(False).tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    assert made.time_ids(True).tolist() == [[16, 16, 0, 0, 16, 16]] * 6


def test_crops_survive_the_way_to_a_worker() -> None:
    made = concept(picture(96, 48), picture(32, 80))
    again = Concept.from_bytes(made.to_bytes())
    assert again.crops == made.crops
    assert (again.time_ids(True) == made.time_ids(True)).all()
