"""Colours of images as sRGB, by the ICC profile that a file carries. Every photograph of an iPhone has one."""

from __future__ import annotations

import logging
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for the colour space of a profile."""
_UNSEEN = 2
"""A profile that changes no colour by more than this, of 255, is sRGB's own: its images stay as they are."""


def to_srgb(image: Image.Image) -> Image.Image:
    """An image in RGB, L or CMYK with its profile's colours converted to sRGB.

    Returns the image itself without a profile, or if the profile is that of sRGB, damaged, or of another colour space
    than the image's. Else an RGB image.
    """
    profile = image.info.get("icc_profile")
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only in place there is no result
    return converted


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile's colours to sRGB; None if there is nothing to convert, or no way to."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if _MODES.get(source.profile.xcolor_space.strip()) != mode:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return transform
        samples = _samples(mode)
        converted = ImageCms.applyTransform(samples, transform)
        difference = np.asarray(converted).astype(int) - np.asarray(samples.convert("RGB"))
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        logger.warning("an ICC profile is damaged (%s): its image counts as sRGB", error)
        return None
    return None if np.abs(difference).max() <= _UNSEEN else transform


def _samples(mode: str) -> Image.Image:
    """Colours from everywhere in the space of the mode."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(grid.reshape(27, 27, 3))
