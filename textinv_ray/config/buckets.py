"""Shapes of training images for `data.fit: bucket`: about as many pixels as the square, with sides that models take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

Shape = tuple[int, int]
"""Height and width in pixels."""

SDXL_SIDE = 1024
_WIDE = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600),
    (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152),
    (896, 1152), (896, 1088), (960, 1088), (960, 1024),
)  # fmt: skip
_TALL = tuple((width, height) for height, width in reversed(_WIDE) if (height, width) != (704, 1344))
SDXL_SHAPES: tuple[Shape, ...] = (*_WIDE, (SDXL_SIDE, SDXL_SIDE), *_TALL)
"""What SDXL was trained with, from wide to tall: Podell et al. 2023, appendix I."""


def shapes(side: int, multiple: int) -> tuple[Shape, ...]:
    """SDXL's shapes for squares of `side` pixels, sides rounded to multiples of `multiple` pixels; from wide to tall.

    The square itself is among them.
    """

    def scaled(pixels: int) -> int:
        return max(1, round(pixels * side / SDXL_SIDE / multiple)) * multiple

    found = {(scaled(height), scaled(width)) for height, width in SDXL_SHAPES} | {(side, side)}
    return tuple(sorted(found, key=lambda shape: (shape[0] / shape[1], shape)))


def choose(sizes: Sequence[tuple[int, int]], among: Sequence[Shape]) -> Shape:
    """The shape whose ratio of sides is nearest to the median of the images', by its logarithm.

    sizes: (width, height) of each image. Of shapes as near, the first.
    """
    middle = median(math.log(height / width) for width, height in sizes)
    return min(among, key=lambda shape: abs(math.log(shape[0] / shape[1]) - middle))
