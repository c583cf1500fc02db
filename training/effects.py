"""Ways to redraw a picture, so that the model learns that drawing styles vary beyond the avatar collections.

Each is named in captions as it stands in `EFFECTS`: what a style word has to find lies between these and the styles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grey_of(image: np.ndarray) -> np.ndarray:
    """float (H, W, 3) -> float (H, W), luminance."""
    return image @ _LUMA


def edges_of(grey: np.ndarray) -> np.ndarray:
    """float (H, W) -> float (H, W): how much the neighbours above and below, left and right differ."""
    padded = np.pad(grey, 1, mode="edge")
    return np.abs(padded[1:-1, 2:] - padded[1:-1, :-2]) + np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1])


def widened(mask: np.ndarray) -> np.ndarray:
    """bool (H, W), each true pixel grown to its four neighbours."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def two_tone(image: np.ndarray, dark: tuple[int, int, int], light: tuple[int, int, int]) -> np.ndarray:
    """Luminance on the line between two colours."""
    share = grey_of(image)[..., None] / 255
    return (1 - share) * np.array(dark, np.float32) + share * np.array(light, np.float32)


def line_drawing(image: np.ndarray) -> np.ndarray:
    return np.repeat((255 - np.minimum(255, edges_of(grey_of(image)) * 1.5))[..., None], 3, -1)


def outlined(image: np.ndarray, colour: tuple[int, int, int], thick: bool = True) -> np.ndarray:
    """The image with its edges traced in one colour."""
    mask = edges_of(grey_of(image)) > 60
    return np.where((widened(mask) if thick else mask)[..., None], np.array(colour, np.float32), image)


def hatched(image: np.ndarray) -> np.ndarray:
    """Black on white: diagonal lines, the darker the closer, and the edges."""
    grey = grey_of(image)
    rows, columns = np.indices(grey.shape)
    ink = (grey < 190) & ((rows + columns) % 5 == 0)
    ink |= (grey < 120) & ((rows - columns) % 5 == 0)
    ink |= (grey < 60) & (rows % 2 == 0)
    ink |= edges_of(grey) > 110
    return np.repeat(np.where(ink, 20.0, 250.0)[..., None], 3, -1)


def shaded(image: np.ndarray) -> np.ndarray:
    """Light from the upper left."""
    height, width, _ = image.shape
    light = np.add.outer(np.arange(height) / height, np.arange(width) / width)
    return np.asarray(image * (1.12 - 0.36 * light)[..., None])


def mosaic(image: np.ndarray, size: int = 4) -> np.ndarray:
    height, width, _ = image.shape
    blocks = image.reshape(height // size, size, width // size, size, 3).mean((1, 3))
    return blocks.repeat(size, 0).repeat(size, 1)


def dotted(image: np.ndarray, size: int = 4) -> np.ndarray:
    """A disc of the mean colour in each square of a white sheet, the darker the larger."""
    blocks = mosaic(image, size)
    rows, columns = np.indices(image.shape[:2]) % size - (size - 1) / 2
    radius = 1.2 + 1.3 * (1 - grey_of(blocks) / 255)
    return np.where((rows**2 + columns**2 <= radius**2)[..., None], blocks, 255.0)


def watercolour(image: np.ndarray) -> np.ndarray:
    """Blurred and paler, on paper of a grain that is always the same."""
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    height, width, _ = image.shape
    soft = np.mean([padded[y : y + height, x : x + width] for y in range(5) for x in range(5)], 0)
    grain = np.random.default_rng(0).normal(0, 7, (height, width, 1)).astype(np.float32)
    return np.asarray(soft * 0.75 + 60 + grain)


REDRAWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "in black and white": lambda image: np.repeat(grey_of(image)[..., None], 3, -1),
    "as a line drawing": line_drawing,
    "in sepia": lambda image: grey_of(image)[..., None] * np.array([1.05, 0.86, 0.66]) + np.array([12, 8, 0]),
    "in pastel colours": lambda image: image * 0.45 + 255 * 0.55,
    "as a poster": lambda image: np.round(image / 85.0) * 85.0,
    "with thick black outlines": lambda image: outlined(image, (15, 15, 15)),
    "with thin black outlines": lambda image: outlined(image, (15, 15, 15), thick=False),
    "with white outlines": lambda image: outlined(image, (250, 250, 250)),
    "with blue outlines": lambda image: outlined(image, (40, 70, 200)),
    "with hatching": hatched,
    "in blue ink": lambda image: two_tone(image, (20, 30, 120), (240, 242, 250)),
    "in red ink": lambda image: two_tone(image, (120, 10, 10), (255, 236, 220)),
    "with shading": shaded,
    "in warm colours": lambda image: image * np.array([1.1, 0.85, 0.5]) + np.array([25, 5, 0]),
    "in cold colours": lambda image: image * np.array([0.55, 0.85, 1.05]) + np.array([0, 10, 30]),
    "in dark colours": lambda image: image * 0.4,
    "with inverted colours": lambda image: 255 - image,
    "as a mosaic": mosaic,
    "with dots": dotted,
    "as a watercolour": watercolour,
}
EFFECTS = tuple(REDRAWN)
"""How captions name each effect."""
EFFECT_EVERY = 5
"""One drawing in so many is redrawn."""


def effect_of(index: int) -> str | None:
    """What the training's drawing of this number is redrawn with; None: it isn't."""
    return None if index % EFFECT_EVERY else EFFECTS[index // EFFECT_EVERY % len(EFFECTS)]


def apply_effect(image: np.ndarray, effect: str) -> np.ndarray:
    """uint8 (H, W, 3), sides divisible by 4 -> uint8 (H, W, 3); raises KeyError for an unknown effect."""
    return REDRAWN[effect](image.astype(np.float32)).clip(0, 255).astype(np.uint8)
