"""Images in shapes other than squares, and whole images in padded squares (crops to squares: test_images.py)."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from textinv_ray.concepts import fitting, prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.masks import MaskError
from textinv_ray.config import buckets
from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError

RED = (200, 30, 40)
lengths = st.integers(1, 300)
centers = st.tuples(st.floats(0, 1), st.floats(0, 1))


def embedded(image: Image.Image) -> dict[str, Any]:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def picture(width: int, height: int) -> dict[str, Any]:
    return embedded(Image.new("RGB", (width, height), RED))


def concept(*images: dict[str, Any], masks: Any = None, resolution: int = 64, **data: Any) -> Concept:
    row = {"concept_id": "rex", "images": list(images), "initializer_token": "dog", "masks": masks}
    config = JobConfig.from_dict({"data": data})
    return prepare.make(row, config, base="/", resolution=resolution, model_identity="model-1")


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(lengths, lengths), shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), center=centers
)
def test_a_part_has_the_shape_and_stays_within_the_image(
    size: tuple[int, int], shape: buckets.Shape, center: tuple[float, float]
) -> None:
    width, height = fitting.part(size, shape)
    assert width / height == pytest.approx(shape[1] / shape[0])
    assert width <= size[0] + 1e-9
    assert height <= size[1] + 1e-9
    assert width == size[0] or height == size[1], "no larger one would fit"
    found = fitting.crops(Image.new("RGB", size, RED), shape, np.array([center]))
    assert found.shape == (1, *shape, 3)
    assert (found == RED).all()
    ((original_height, original_width, top, left),) = fitting.crop_places(size, shape, np.array([center]))
    assert (original_width, original_height) == size
    scale = max(shape[1] / size[0], shape[0] / size[1])
    assert 0 <= top <= max(0.0, original_height * scale - shape[0]) + 0.5
    assert 0 <= left <= max(0.0, original_width * scale - shape[1]) + 0.5


@settings(deadline=None, max_examples=60)
@given(size=st.tuples(lengths, lengths), side=st.integers(1, 64))
def test_a_padded_image_is_there_as_a_whole(size: tuple[int, int], side: int) -> None:
    left, top, right, bottom = fitting.padding(size, side)
    width, height = side - left - right, side - top - bottom
    assert min(left, top, right, bottom) >= 0
    assert max(width, height) == side
    assert abs(left - right) <= 1
    assert abs(top - bottom) <= 1
    assert abs(width - side * size[0] / max(size)) <= max(0.5, 1 - side * size[0] / max(size))
    square = fitting.padded(Image.new("RGB", size, RED), side, (left, top, right, bottom))
    assert (square[top : side - bottom, left : side - right] == RED).all()
    assert (square == RED).all(axis=-1).sum() == width * height


def test_padding() -> None:
    made = concept(picture(64, 32), picture(32, 64), picture(32, 32), fit="pad", crop="random")
    assert made.images.shape == (3, 1, 64, 64, 3), "nothing is cropped, so there is nothing to choose"
    assert made.paddings == ((0, 16, 0, 16), (16, 0, 16, 0), (0, 0, 0, 0))
    assert made.masks is None
    assert (made.images[0, 0, :16] == fitting.GREY).all()
    assert (made.images[0, 0, 16:48] == RED).all()
    assert made.time_ids(flips=True).tolist() == [
        [32, 64, 0, 0, 64, 64],
        [32, 64, 0, 0, 64, 64],
        [64, 32, 0, 0, 64, 64],
        [64, 32, 0, 0, 64, 64],
        [32, 32, 0, 0, 64, 64],
        [32, 32, 0, 0, 64, 64],
    ]
    again = Concept.from_bytes(made.to_bytes())
    assert again.paddings == made.paddings


def test_masks_have_nothing_in_the_padding() -> None:
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 16, 32))
    made = concept(picture(64, 32), picture(32, 64), fit="pad", masks=[embedded(mask), None])
    assert made.masks is not None
    expected = np.zeros((2, 64, 64), bool)
    expected[0, 16:48, :16] = expected[1, :, 16:48] = True
    assert ((made.masks[:, 0] == 255) == expected).all()
    assert set(np.unique(made.masks)) == {0, 255}
    tiny = Image.new("L", (1000, 1000))
    tiny.putpixel((500, 500), 255)
    with pytest.raises(MaskError, match="has nothing that is left at 16 pixels"):
        concept(picture(1000, 1000), fit="pad", masks=[embedded(tiny)], resolution=16)


def test_a_concept_has_one_bucket() -> None:
    wide = concept(picture(150, 100), picture(160, 100), picture(100, 100), fit="bucket", resolution=512)
    assert wide.shape == buckets.choose([(150, 100)], buckets.shapes(512, 8))
    assert wide.shape[1] / wide.shape[0] == pytest.approx(1.5, abs=0.1)
    height, width = wide.shape
    # The original sizes, what is cut off, and the sizes as they are shown: the square loses as much above as below
    found = wide.time_ids(flips=False).tolist()
    assert [line[:2] for line in found] == [[100, 150], [100, 160], [100, 100]]
    assert [line[4:] for line in found] == [[height, width]] * 3
    assert found[2][2:4] == [round((width - height) / 2), 0]
    assert found[1][2] == 0
    assert found[1][3] == round((160 * height / 100 - width) / 2)
    assert (
        concept(picture(150, 100), fit="bucket", resolution=512).fingerprint
        != concept(picture(150, 100)).fingerprint
    )


@settings(deadline=None, max_examples=30)
@given(size=st.tuples(st.integers(20, 90), st.integers(20, 90)), seed=st.integers(0, 9))
def test_random_crops_of_buckets_and_their_mirror_images(size: tuple[int, int], seed: int) -> None:
    """Each lies within the resized image, and the mirror image as far from the other edge."""
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 2, size[1] // 2, size[0] // 2 + 2, size[1] // 2 + 2))
    row = {
        "concept_id": "rex",
        "images": [picture(*size), picture(40, 60)],
        "initializer_token": "dog",
        "masks": [embedded(mask), None],
        "seed": seed,
    }
    config = JobConfig.from_dict({"data": {"fit": "bucket", "crop": "random", "crops_per_image": 2}})
    made = prepare.make(row, config, base="/", resolution=64, model_identity="model-1")
    height, width = made.shape
    assert made.images.shape == (2, 2, height, width, 3)
    assert (made.images == RED).all()
    assert made.masks is not None
    assert made.masks.shape == made.images.shape[:-1]
    assert made.masks[0].any(axis=(1, 2)).all(), "crops keep to what the mask shows"
    for (h, w, top, left, *_), mirrored in zip(*[iter(made.time_ids(flips=True).tolist())] * 2, strict=True):
        scale = max(height / h, width / w)
        assert mirrored[2] == top
        assert left + mirrored[3] == pytest.approx(w * scale - width, abs=1.01)


def test_compilation_is_for_one_shape() -> None:
    with pytest.raises(UserError, match=r"pack\.compile: the UNet is compiled for one shape; leave it out"):
        JobConfig.load("mini", ["data.fit=bucket", "pack.compile=true"])
