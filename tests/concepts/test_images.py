"""Images: every kind decodes to what one sees, and what can't be used says why. (Fetching: test_fetch.py.)"""

from __future__ import annotations

import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from textinv_ray.concepts import fitting, images
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.config.job import DataConfig
from textinv_ray.manifest import image_files
from textinv_ray.manifest.kinds import EmbeddedImage

CONFIG = DataConfig(download_retry_s=0)
RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, **options: Any) -> np.ndarray:
    image = images.decode(data, "x", CONFIG.max_image_pixels, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_rgb_is_unchanged() -> None:
    assert (decoded(encoded(gradient(9, 7))) == np.asarray(gradient(9, 7))).all()


def test_grey() -> None:
    assert (decoded(encoded(Image.new("L", (4, 4), 77))) == 77).all()
    assert (decoded(encoded(Image.new("1", (4, 4), 1))) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_cut_off(kind: str) -> None:
    grey = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert decoded(encoded(Image.fromarray(grey), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_32_bit_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="32-bit pixels have no known range"):
        decoded(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_alpha_goes_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (*RED, 255), (0, 0, 0, 128)])
    pixels = decoded(encoded(image))[0]
    assert pixels[0].tolist() == [255, 255, 255]
    assert pixels[1].tolist() == list(RED)
    assert abs(int(pixels[2, 0]) - 127) <= 1
    assert decoded(encoded(Image.new("LA", (2, 2), (0, 0)))).min() == 255


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 1, 2, 3])
    image.putdata([0, 1])
    assert decoded(encoded(image))[0].tolist() == [list(RED), [1, 2, 3]]
    assert decoded(encoded(image, transparency=1))[0].tolist() == [list(RED), [255, 255, 255]]


def test_cmyk() -> None:
    pixels = decoded(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert pixels[4, 4, 0] > 240
    assert pixels[4, 4, 1] < 40


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animated_gives_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    pixels = decoded(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50))
    assert pixels[4, 4, 0] > 240
    assert pixels[4, 4, 2] < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encoded(gradient(30, 20), "JPEG", exif=exif, quality=100))
    assert pixels.shape[:2] == ((20, 30) if orientation <= 4 else (30, 20))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert pixels[corner[orientation]][:2].max() < 30  # the gradient starts dark in red and green


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_with_orientation_is_that_of_the_pixels(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(30, 20), kind, exif=exif)
    height, width = decoded(data).shape[:2]
    assert images.original_size(data) == (width, height) == ((30, 20) if orientation < 5 else (20, 30))


def test_a_huge_jpeg_is_decoded_small() -> None:
    data = encoded(gradient(1600, 1200), "JPEG")
    assert images.decode(data, "x", CONFIG.max_image_pixels, near=64).size == (200, 150)


def png_header(width: int, height: int) -> bytes:
    """A file that says it is so large, and ends soon after."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0" * 99)),
    ]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is an empty file"),
        (b"hello", "is not an image of a known kind"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "is a Git LFS pointer .* `git lfs pull`",
        ),
        (b"<!DOCTYPE html><html>Log in</html>", "is an HTML page and not an image"),
        (b"\xef\xbb\xbf\n  <HTML>", "is an HTML page and not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG or XML file: convert it to PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a known kind"),
        (encoded(noise(64, 64))[:2000], "is damaged"),
        (encoded(noise(64, 64), "JPEG")[:1500], "is damaged"),
        (png_header(9000, 9000), "has 9000 x 9000 pixels, more than data.max_image_pixels allows"),
        (png_header(60000, 60000), "has more than 80000000 pixels"),
        (png_header(0, 5), "image s3://b/x.png: "),
    ],
)
def test_unusable_images_say_why(data: bytes, reason: str) -> None:
    image: EmbeddedImage = {"bytes": data, "path": "s3://me:SECRET@b/x.png?SECRET"}
    with pytest.raises(ImageError, match=reason) as error:
        images.prepare([image], base="/", config=CONFIG, resolution=16, seed=0)
    assert str(error.value).startswith("image s3://b/x.png: ")
    assert "SECRET" not in str(error.value)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.uri, again.reason) == (str(error.value), error.value.uri, error.value.reason)


def test_prepare_shapes_and_digests(tmp_path: Path) -> None:
    picture = encoded(gradient(20, 20))
    (tmp_path / "a b.png").write_bytes(picture)
    rows: list[str | EmbeddedImage] = ["a b.png", {"bytes": picture, "path": None}]
    prepared = images.prepare(rows, base=str(tmp_path), config=CONFIG, resolution=16, seed=0)
    assert prepared.pixels.shape == (2, 1, 16, 16, 3)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.uris == ("a b.png", "images[1]")
    assert prepared.digests[0] == prepared.digests[1]
    assert (prepared.pixels[0] == prepared.pixels[1]).all()


def test_random_crops_depend_on_the_seed_alone() -> None:
    rows: list[EmbeddedImage] = [{"bytes": encoded(gradient(90, 40)), "path": None}] * 2

    def crops(seed: int, count: int) -> np.ndarray:
        config = DataConfig(crop="random", crops_per_image=count)
        return images.prepare(rows, base="/", config=config, resolution=16, seed=seed).pixels

    assert crops(1, 4).shape == (2, 4, 16, 16, 3)
    assert (crops(1, 4) == crops(1, 4)).all()
    assert (crops(1, 2) == crops(1, 4)[:, :2]).all()
    assert (crops(1, 4) != crops(2, 4)).any()
    assert (crops(1, 4)[0] != crops(1, 4)[1]).any()


def test_the_centre_crop_is_resize_then_crop() -> None:
    image = gradient(96, 48)
    expected = np.asarray(image.resize((48, 24), Image.Resampling.LANCZOS).crop((12, 0, 36, 24)), dtype=int)
    square = fitting.crops(image, (24, 24), np.full((1, 2), 0.5))[0].astype(int)
    assert np.abs(square - expected).max() <= 2


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.integers(1, 40),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_crops_stay_within_the_image(width: int, height: int, size: int, x: float, y: float) -> None:
    """An image of one colour has crops of that colour: nothing from beyond its edges comes in."""
    squares = fitting.crops(
        Image.new("RGB", (width, height), RED), (size, size), np.array([[x, y], [0.5, 0.5]])
    )
    assert squares.shape == (2, size, size, 3)
    assert (squares == RED).all()


def test_a_thin_image_takes_no_room() -> None:
    squares = fitting.crops(Image.new("RGB", (1, 50_000), RED), (64, 64), np.full((1, 2), 0.5))
    assert squares.shape == (1, 64, 64, 3)


def test_photographs_of_iphones() -> None:
    """HEIC, by pillow-heif."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    pixels = decoded(encoded(Image.new("RGB", (32, 32), RED), "HEIF", quality=95))
    assert np.abs(pixels[16, 16].astype(int) - RED).max() < 10


def test_heic_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "reads_heif", lambda: False)
    monkeypatch.setattr(Image, "OPEN", {name: entry for name, entry in Image.OPEN.items() if name != "HEIF"})
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"
    with pytest.raises(
        ImageError, match=r"is a HEIC image, which needs another package: pip install 'textinv_ray\[heic\]'"
    ):
        decoded(data)


def exif_turned(image: Image.Image, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_original_size(kind: str) -> None:
    assert images.original_size(encoded(gradient(30, 20), kind)) == (30, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_original_size_is_of_the_turned_image(orientation: int) -> None:
    data = exif_turned(gradient(30, 20), orientation)
    height, width = decoded(data).shape[:2]
    assert images.original_size(data) == (width, height)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_original_size_is_not_that_of_the_reduced_decoding(orientation: int) -> None:
    data = exif_turned(gradient(1600, 1200), orientation)
    size = (1600, 1200) if orientation == 1 else (1200, 1600)
    assert images.decode(data, "x", CONFIG.max_image_pixels, near=64).size < size
    assert images.original_size(data) == size
    image: EmbeddedImage = {"bytes": data, "path": None}
    prepared = images.prepare([image], base="/", config=CONFIG, resolution=64, seed=0)
    # Its shorter side becomes 64 pixels, the longer 85 1/3: the middle is 10 2/3 from the edge
    assert prepared.crops == ((((1200, 1600, 0, 11) if orientation == 1 else (1600, 1200, 11, 0)),),)


@pytest.mark.parametrize(
    ("size", "centers", "places"),
    [
        ((64, 64), [[0.5, 0.5], [0.0, 1.0]], ((64, 64, 0, 0), (64, 64, 0, 0))),
        ((16, 16), [[0.5, 0.5]], ((16, 16, 0, 0),)),
        (
            (200, 100),
            [[0.0, 0.3], [0.5, 0.5], [1.0, 0.9]],
            ((100, 200, 0, 0), (100, 200, 0, 16), (100, 200, 0, 32)),
        ),
        (
            (100, 200),
            [[0.3, 0.0], [0.5, 0.5], [0.9, 1.0]],
            ((200, 100, 0, 0), (200, 100, 16, 0), (200, 100, 32, 0)),
        ),
        ((8, 4), [[1.0, 0.0]], ((4, 8, 0, 32),)),
    ],
)
def test_where_crops_lie(
    size: tuple[int, int], centers: list[list[float]], places: tuple[tuple[int, int, int, int], ...]
) -> None:
    """Original height and width, then top and left in the image whose shorter side is 32 pixels."""
    assert fitting.crop_places(size, (32, 32), np.array(centers)) == places


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    size=st.integers(1, 1024),
    centers=st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), min_size=1, max_size=3),
)
def test_places_of_crops_stay_within_the_image(
    width: int, height: int, size: int, centers: list[tuple[float, float]]
) -> None:
    for place in fitting.crop_places((width, height), (size, size), np.array(centers)):
        assert place[:2] == (height, width)
        assert all(type(number) is int for number in place)
        for start, side in zip(place[2:], place[:2], strict=True):
            assert 0 <= start <= side * size / min(width, height) - size + 0.5


@pytest.mark.parametrize(("width", "height"), [(48, 96), (96, 48), (60, 41)])
def test_a_place_is_that_of_the_pixels(width: int, height: int) -> None:
    """The square that was cut is what lies at its place in the resized image."""
    image: EmbeddedImage = {"bytes": encoded(gradient(width, height)), "path": None}
    config = DataConfig(crop="random", crops_per_image=5)
    prepared = images.prepare([image], base="/", config=config, resolution=24, seed=3)
    scale = 24 / min(width, height)
    resized = gradient(width, height).resize((round(width * scale), round(height * scale)))
    assert len(set(prepared.crops[0])) > 2
    for (original_height, original_width, top, left), pixels in zip(
        prepared.crops[0], prepared.pixels[0], strict=True
    ):
        assert (original_height, original_width) == (height, width)
        there = np.asarray(resized.crop((left, top, left + 24, top + 24)), dtype=int)
        one_pixel_further = 255 / min(width, height) / scale  # steps of the gradient, at most
        assert np.abs(there[4:20, 4:20] - pixels[4:20, 4:20]).max() <= one_pixel_further + 2
