"""Ways to redraw a picture, so that the model learns that drawing styles vary beyond the avatar collections."""

from __future__ import annotations

import numpy as np

EFFECTS = ("in black and white", "as a line drawing", "in sepia", "in pastel colours", "as a poster")
"""How captions name each effect."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def apply_effect(image: np.ndarray, effect: str) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (H, W, 3); raises KeyError for an unknown effect."""
    grey = image.astype(np.float32) @ _LUMA
    if effect == "in black and white":
        out = np.repeat(grey[..., None], 3, -1)
    elif effect == "as a line drawing":
        padded = np.pad(grey, 1, mode="edge")
        edges = np.abs(padded[1:-1, 2:] - padded[1:-1, :-2]) + np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1])
        out = np.repeat((255 - np.minimum(255, edges * 1.5))[..., None], 3, -1)
    elif effect == "in sepia":
        out = grey[..., None] * np.array([1.05, 0.86, 0.66], np.float32) + np.array([12, 8, 0], np.float32)
    elif effect == "in pastel colours":
        out = image * 0.45 + 255 * 0.55
    elif effect == "as a poster":
        out = np.round(image / 85.0) * 85.0
    else:
        raise KeyError(effect)
    return out.clip(0, 255).astype(np.uint8)
