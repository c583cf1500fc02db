"""Encoders by which pictures are scored: one protocol for CLIP, SigLIP and models without text, such as DINO."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

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
    except (OSError, ValueError, KeyError, ImportError, TypeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the {what} {path!r} can't be loaded: {lines[0]}") from error


@torch.no_grad()
def features_in_batches(
    images: np.ndarray,
    processor: BaseImageProcessor,
    model: PreTrainedModel,
    encode: Callable[..., Tensor],
) -> Tensor:
    """Features of images in batches: uint8 (n, H, W, 3) -> float32 (n, d) of Euclidean length 1.

    encode: the part of `model` that takes what its `processor` gives: pixel_values, and of SigLIP 2's models of
    flexible size (NaFlex) a mask and the shape of the grid of patches.
    """
    batches = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = list(images[start : start + BATCH_SIZE])
        inputs = processor(images=batch, return_tensors="pt", input_data_format="channels_last").to(
            model.device
        )
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        batches.append(encode(**inputs))
    return F.normalize(torch.cat(batches).float(), dim=-1)
