"""Encoders by which pictures are scored: one protocol for CLIP, SigLIP and models without text, such as DINO."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from textinv_ray.util.errors import UserError

BATCH_SIZE = 64
"""Images per forward pass."""


class Encoder(Protocol):
    """A frozen model that makes vectors of pictures, and of texts if it reads them. Vectors have length 1."""

    @property
    def reads_text(self) -> bool:
        """Whether `text_features` can be called."""

    def image_features(self, images: np.ndarray) -> Tensor:
        """uint8 (n, H, W, 3) -> float32 (n, d). Pictures of any size: each model has preprocessing of its own."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """float32 (n, d), comparable with `image_features`. Raises ValueError for a model that doesn't read text."""


@contextlib.contextmanager
def loading(what: str, path: str) -> Iterator[None]:
    """Turns what transformers raises for a model that isn't there, or is another, into a UserError of one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the {what} {path!r} can't be loaded: {lines[0]}") from error
