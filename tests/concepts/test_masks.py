"""Masks: what they say of an image, that they are cut as it is, and what can't be used says why."""

from __future__ import annotations

import pickle
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from textinv_ray.concepts import images, masks, prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.concepts.masks import MaskError
from textinv_ray.config.job import DataConfig, JobConfig
from textinv_ray.manifest.kinds import EmbeddedImage, ImageSource

CONFIG = DataConfig(download_retry_s=0)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def embedded(image: Image.Image, path: str | None = None, **options: Any) -> EmbeddedImage:
    return {"bytes": encoded(image, **options), "path": path}


def spot(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is white in a box (left, top, right, bottom; right and bottom excluded)."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def prepared(
    image: Image.Image, mask: Any, config: DataConfig = CONFIG, resolution: int = 16, seed: int = 0
) -> images.Prepared:
    return images.prepare(
        [embedded(image)], base="/", config=config, resolution=resolution, seed=seed, masks=[mask]
    )


def test_grey_levels_of_every_kind_of_file() -> None:
    def level(image: Image.Image) -> object:
        return masks.levels(image).getpixel((0, 0))

    assert level(Image.new("1", (2, 2), 1)) == 255
    assert level(Image.new("L", (2, 2), 77)) == 77
    assert level(Image.new("RGB", (2, 2), (90, 90, 90))) == 90
    assert level(Image.new("RGBA", (2, 2), (255, 255, 255, 51))) == 51, (
        "what is transparent isn't the concept"
    )
    assert level(Image.new("LA", (2, 2), (100, 255))) == 100
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    assert level(palette) == 255
    palette.info["transparency"] = 1
    assert level(palette) == 0
    assert level(Image.fromarray(np.full((2, 2), 128 * 257, np.uint16))) == 128
    with pytest.raises(ValueError, match="32-bit pixels have no known range"):
        level(Image.new("F", (2, 2), 1.0))


def test_the_opacity_of_an_image() -> None:
    assert masks.of_alpha(Image.new("RGB", (2, 2))) is None
    assert masks.of_alpha(Image.new("RGBA", (2, 2), (1, 2, 3, 255))) is None, "nothing is left out"
    seen = masks.of_alpha(Image.new("RGBA", (2, 2), (1, 2, 3, 40)))
    assert seen is not None
    assert seen.getextrema() == (40, 40)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("size", [(64, 64), (96, 48), (41, 60)])
def test_a_mask_is_cut_as_its_image(size: tuple[int, int], crop: Any, orientation: int) -> None:
    """Of an image that looks like its mask."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((size[0] // 4, size[1] // 4, size[0] - 9, size[1] - 6), 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    config = DataConfig(crop=crop, crops_per_image=3)
    found = images.prepare(
        [embedded(mask.convert("RGB"), exif=exif)],
        base="/",
        config=config,
        resolution=16,
        seed=1,
        masks=[embedded(mask, exif=exif)],
    )
    assert found.masks is not None
    assert found.masks.shape == found.pixels.shape[:-1]
    assert found.masks.dtype == np.uint8
    difference = found.masks.astype(float) - found.pixels[..., 0]
    assert np.abs(difference).mean() < 6, "edges differ a little, by the filters"


def test_a_mask_is_averaged_by_area() -> None:
    found = prepared(Image.new("RGB", (64, 64)), embedded(spot(64, 64, (0, 0, 33, 64))))
    assert found.masks is not None
    assert (found.masks[0, 0] == [255] * 8 + [64] + [0] * 7).all(), "a quarter of the column at the edge"


def test_images_without_a_mask_are_the_concept_as_a_whole() -> None:
    picture = Image.new("RGB", (20, 20))
    found = images.prepare(
        [embedded(picture)] * 2,
        base="/",
        config=CONFIG,
        resolution=8,
        seed=0,
        masks=[None, embedded(spot(20, 20, (0, 0, 5, 5)))],
    )
    assert found.masks is not None
    assert (found.masks[0] == 255).all()
    assert found.masks[1].min() == 0
    assert found.mask_digests[0] == ""
    assert len(found.mask_digests[1]) == 64
    assert prepared(picture, None).masks is None


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    extent=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 9),
)
def test_random_crops_show_what_the_mask_has(
    size: tuple[int, int], corner: tuple[float, float], extent: tuple[float, float], seed: int
) -> None:
    """All of it where it fits into the square, else nothing but it along that side."""
    first = [int(c * (side - 1)) for c, side in zip(corner, size, strict=True)]
    last = [f + 1 + int(e * (s - f - 1)) for f, e, s in zip(first, extent, size, strict=True)]
    mask = spot(*size, (*first, *last))  # type: ignore[arg-type]
    side = min(size)
    centers = masks.around(mask, (side, side), np.random.default_rng(seed).random((3, 2)))
    for center in centers:
        for axis in range(2):
            start = center[axis] * (size[axis] - side)
            assert -1e-9 <= start <= size[axis] - side + 1e-9
            if last[axis] - first[axis] <= side:
                assert start <= first[axis] + 1e-9
                assert last[axis] <= start + side + 1e-9
            else:
                assert first[axis] - 1e-9 <= start
                assert start + side <= last[axis] + 1e-9


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (
            spot(30, 20, (0, 0, 5, 5)),
            "has 30 x 20 pixels, but its image images[0] 40 x 20: save the mask at the",
        ),
        (
            Image.new("L", (40, 20)),
            "is empty, all of it is black: paint the concept white in it, or give null",
        ),
        (spot(40, 20, (0, 0, 5, 5)), "has nothing in the part of the image that is cut out: crop"),
        (Image.new("F", (40, 20), 1.0), "is damaged: 32-bit pixels have no known range"),
    ],
    ids=["size", "empty", "outside", "32 bits"],
)
def test_masks_that_cannot_be_used_say_why(mask: Image.Image, reason: str) -> None:
    kind = "TIFF" if mask.mode == "F" else "PNG"
    given: EmbeddedImage = {"bytes": encoded(mask, kind), "path": "s3://me:SECRET@b/mask.png?SECRET"}
    with pytest.raises(ImageError) as error:
        prepared(Image.new("RGB", (40, 20)), given)
    assert str(error.value).startswith(f"mask s3://b/mask.png: {reason}")
    found = images.problems(
        [embedded(Image.new("RGB", (40, 20)))], base="/", config=CONFIG, resolution=16, seed=0, masks=[given]
    )
    assert list(map(str, found)) == [str(error.value)]
    assert "SECRET" not in str(error.value)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)


def test_a_mask_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (8, 8))))
    given: list[tuple[ImageSource, str]] = [
        ("b.png", f"{tmp_path}/b.png: doesn't exist"),
        ({"bytes": b"", "path": None}, "masks[1]: is an empty file"),
    ]
    for mask, said in given:
        with pytest.raises(MaskError, match=re.escape(f"mask {said}")):
            images.prepare(
                ["a.png"] * 2, base=str(tmp_path), config=CONFIG, resolution=8, seed=0, masks=[None, mask]
            )
        (error,) = images.problems(
            ["a.png"] * 2, base=str(tmp_path), config=CONFIG, resolution=8, seed=0, masks=[None, mask]
        )
        assert str(error).startswith(f"mask {said}")


def test_alpha_channels_by_choice() -> None:
    image = Image.new("RGBA", (16, 16), (200, 30, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    plain, chosen = prepared(image, None), prepared(image, None, DataConfig(alpha_masks=True))
    assert plain.masks is None
    assert chosen.masks is not None
    assert (chosen.masks[0, 0] == [0] * 8 + [255] * 8).all()
    assert (chosen.pixels == plain.pixels).all(), "transparency is on white in any case"
    assert (chosen.pixels[0, 0, :, :8] == 255).all()
    given = prepared(image, embedded(spot(16, 16, (0, 0, 8, 16))), DataConfig(alpha_masks=True))
    assert given.masks is not None
    assert (given.masks[0, 0] == [255] * 8 + [0] * 8).all(), "the manifest's mask goes before"
    with pytest.raises(ImageError, match="is transparent everywhere, and data"):
        prepared(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), None, DataConfig(alpha_masks=True))


def concept(row: dict[str, Any] | None = None, *overrides: str) -> Concept:
    pictures = [embedded(Image.new("RGB", (8, 8), color)) for color in ("red", "green", "blue")]
    base = {"concept_id": "rex", "images": pictures, "initializer_token": "dog"}
    config = JobConfig().override(overrides)
    return prepare.make({**base, **(row or {})}, config, base="/", resolution=8, model_identity="model-1")


def boxes(*widths: int | None) -> list[Any]:
    return [None if width is None else embedded(spot(8, 8, (0, 0, width, 8))) for width in widths]


def test_masks_go_with_their_images() -> None:
    learned = set()
    for seed in range(8):
        made = concept({"masks": boxes(1, 2, 3), "seed": seed}, "data.holdout=1")
        assert made.masks is not None
        colors = tuple(int(np.argmax(image[0, 0, 0])) for image in made.images)
        assert tuple(int((mask[0, 0] > 0).sum()) - 1 for mask in made.masks) == colors
        learned.add(colors)
    assert len(learned) == 3, "each image was held out once or more"
    assert made.masks is not None
    again = Concept.from_bytes(made.to_bytes())
    assert again.masks is not None
    assert (again.masks == made.masks).all()
    assert Concept.from_bytes(concept().to_bytes()).masks is None


def test_a_changed_mask_is_another_result() -> None:
    def fingerprints(*widths: int | None) -> tuple[str, str, str]:
        made = concept({"masks": boxes(*widths)} if widths else None)
        return made.fingerprint, made.row_fingerprint, made.state_fingerprint

    plain, first, second = fingerprints(), fingerprints(1, 2, None), fingerprints(1, 3, None)
    assert all(len({plain[i], first[i], second[i]}) == 3 for i in range(3))
    assert fingerprints(None, None, None) == plain
    assert fingerprints(1, 2, None) == first
    assert fingerprints(None, 1, 2) != first
