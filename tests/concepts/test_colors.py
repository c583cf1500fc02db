"""Colours become sRGB by the file's ICC profile. The profiles are made here, from the published primaries.

Expected values: the colour in linear light by the profile's curve, to CIE XYZ by its primaries, to sRGB by IEC
61966-2-1. They were computed in `expected` below, apart from Pillow's LittleCMS.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from textinv_ray.concepts import images

D50 = (0.9642, 1.0, 0.8249)
TO_SRGB = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]])
"""From XYZ relative to D50 to linear sRGB (Lindbloom's matrix)."""
# Columns of the matrices: the primaries' XYZ, adapted to D50 as profiles have them
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma: float | None) -> bytes:
    """A curve of one exponent, or with None that of sRGB."""
    if gamma is None:
        return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(*SRGB_CURVE)
    return b"para" + bytes(4) + struct.pack(">HH", 0, 0) + fixed(gamma)


def text(words: str) -> bytes:
    data = words.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(data), 28) + data


def profile(
    space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr"
) -> bytes:
    """An ICC profile of version 4."""
    tags = {
        b"desc": text("made for a test"),
        b"cprt": text("none"),
        b"wtpt": b"XYZ " + bytes(4) + fixed(*D50),
        **tags,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    rest = struct.pack(">I", len(tags)) + table + body
    header = struct.pack(
        ">I4sI4s4s4s12s4s", 128 + len(rest), bytes(4), 0x04200000, kind, space, connection, bytes(12), b"acsp"
    )
    header += bytes(28) + fixed(*D50)
    return header.ljust(128, b"\0") + rest


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float | None) -> bytes:
    tags = {}
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags[letter + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*primary)
        tags[letter + b"TRC"] = curve(gamma)
    return profile(b"RGB ", tags)


def encoded(image: Image.Image, icc: bytes, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, icc_profile=icc, **options)
    return buffer.getvalue()


def learned(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data, "x", 10**6))[0, 0].astype(int)


def linear(values: np.ndarray, gamma: float | None) -> np.ndarray:
    if gamma is not None:
        return values**gamma
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def expected(
    color: tuple[int, ...], primaries: tuple[tuple[float, ...], ...], gamma: float | None
) -> np.ndarray:
    light = linear(np.array(color) / 255, gamma)
    return srgb(TO_SRGB @ np.array(primaries).T @ light)


@pytest.mark.parametrize(
    ("primaries", "gamma"),
    [(DISPLAY_P3, None), (ADOBE_RGB, 563 / 256), (PROPHOTO, 1.8)],
    ids=["P3", "Adobe", "ProPhoto"],
)
@pytest.mark.parametrize(
    "color", [(217, 100, 72), (128, 128, 128), (255, 255, 255), (60, 90, 70), (200, 30, 40)]
)
def test_rgb_profiles(primaries: Any, gamma: float | None, color: tuple[int, int, int]) -> None:
    data = encoded(Image.new("RGB", (4, 4), color), rgb_profile(primaries, gamma))
    assert np.abs(learned(data) - expected(color, primaries, gamma)).max() <= 2


def test_skin_on_a_photograph_of_an_iphone() -> None:
    """The value that was reported: sRGB (235, 90, 60), stored in Display P3."""
    icc = rgb_profile(DISPLAY_P3, None)
    assert np.abs(learned(encoded(Image.new("RGB", (4, 4), (217, 100, 72)), icc)) - (235, 90, 60)).max() <= 2
    jpeg = encoded(Image.new("RGB", (16, 16), (217, 100, 72)), icc, "JPEG", quality=100)
    assert np.abs(learned(jpeg) - (235, 90, 60)).max() <= 4


def test_transparency_and_palettes() -> None:
    icc = rgb_profile(DISPLAY_P3, None)
    image = Image.new("RGBA", (4, 4), (217, 100, 72, 255))
    assert np.abs(learned(encoded(image, icc)) - (235, 90, 60)).max() <= 2
    half = learned(encoded(Image.new("RGBA", (4, 4), (217, 100, 72, 128)), icc))
    assert np.abs(half - (245, 172, 157)).max() <= 3  # between that colour and white
    assert (
        np.abs(
            learned(encoded(Image.new("RGB", (4, 4), (217, 100, 72)).quantize(4), icc)) - (235, 90, 60)
        ).max()
        <= 3
    )


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("level", [0, 20, 128, 200, 255])
def test_grey_with_gamma(gamma: float, level: int) -> None:
    icc = profile(b"GRAY", {b"kTRC": curve(gamma)})
    grey = srgb(np.array(level / 255) ** gamma)
    for image in (Image.new("L", (4, 4), level), Image.new("LA", (4, 4), (level, 255))):
        assert np.abs(learned(encoded(image, icc)) - grey).max() <= 2
    deep = Image.fromarray(np.full((4, 4), level * 257, np.uint16))
    assert np.abs(learned(encoded(deep, icc)) - grey).max() <= 2


def cmyk_profile(lab: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A printer whose corners of ink have these Lab values; between them it is linear (a lut8 with 2 points a side)."""
    grid = b"".join(
        bytes([round(lightness * 2.55), round(a) + 128, round(b) + 128])
        for c in (0, 1)
        for m in (0, 1)
        for y in (0, 1)
        for k in (0, 1)
        for lightness, a, b in [lab[c, m, y, k]]
    )
    ramp = bytes(range(256))
    lut = (
        b"mft1"
        + bytes(4)
        + bytes([4, 3, 2, 0])
        + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
        + ramp * 4
        + grid
        + ramp * 3
    )
    return profile(b"CMYK", {b"A2B0": lut}, connection=b"Lab ", kind=b"prtr")


def test_cmyk_with_a_profile() -> None:
    """Ink that prints otherwise than the plain formula says: cyan here is Lab (60, -30, -40)."""
    corners = {
        (c, m, y, k): (100.0 - 99 * k if c + m + y == 0 else 5.0, 0.0, 0.0)
        for c in (0, 1)
        for m in (0, 1)
        for y in (0, 1)
        for k in (0, 1)
    }
    corners[1, 0, 0, 0] = (60.0, -30.0, -40.0)
    icc = cmyk_profile(corners)

    def ink(*values: int) -> np.ndarray:
        return learned(encoded(Image.new("CMYK", (16, 16), values), icc, "TIFF"))

    assert np.abs(ink(0, 0, 0, 0) - 255).max() <= 2
    # Lab (60, -30, -40) -> XYZ (D50) -> sRGB
    f = np.array([(60 + 16) / 116 - 30 / 500, (60 + 16) / 116, (60 + 16) / 116 + 40 / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
    assert np.abs(ink(255, 0, 0, 0) - srgb(TO_SRGB @ xyz)).max() <= 4
    plain = np.asarray(Image.new("CMYK", (1, 1), (255, 0, 0, 0)).convert("RGB"))[0, 0].astype(int)
    assert np.abs(ink(255, 0, 0, 0) - plain).max() > 40


def test_srgb_itself_changes_nothing() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    assert (np.asarray(images.decode(encoded(noise, icc), "x", 10**6)) == np.asarray(noise)).all()


@pytest.mark.parametrize(
    "icc", [b"rubbish", rgb_profile(DISPLAY_P3, None)[:200], profile(b"GRAY", {b"kTRC": curve(1.0)})]
)
def test_a_profile_that_cannot_be_applied_is_ignored(icc: bytes) -> None:
    """Damaged, or of another kind of image: as browsers do."""
    assert learned(encoded(Image.new("RGB", (4, 4), (217, 100, 72)), icc)).tolist() == [217, 100, 72]
