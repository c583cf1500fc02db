"""Images from prompts with learned words, sampled by diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone

MAX_BATCH_SIZE = 32
"""Images per batch at most: more gain nothing."""
PIXELS_PER_BATCH = 8 * 512**2
"""8 images of 512 x 512 pixels, whose sampling fits in memory beside a pack."""


def sample_images(
    backbone: Backbone,
    vectors_by_token: Mapping[str, Tensor],
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: ReviewConfig,
) -> np.ndarray:
    """One image for each pair of prompt and seed: uint8 (n, H, W, 3).

    vectors_by_token: placeholder token -> (V, D). Seed s gives the image that a plain diffusers script gives with
    `generator=torch.Generator().manual_seed(s)` after `load_textual_inversion`. Raises ValueError for a prompt that
    is so long that a word is cut off.
    """
    counts = {token: len(vectors) for token, vectors in vectors_by_token.items()}
    rows = torch.cat(list(vectors_by_token.values())) if vectors_by_token else None
    return sample_ids(backbone, words.tokenize(backbone, prompts, counts), rows, seeds, config)


@torch.no_grad()
def sample_ids(
    backbone: Backbone,
    input_ids: Tensor,
    rows: Tensor | None,
    seeds: Sequence[int],
    config: ReviewConfig,
    *,
    negative_ids: Tensor | None = None,
    side: int | None = None,
    each_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """`sample_images` for tokenized prompts. Returns uint8 (n, side, side, 3).

    input_ids: int64 (n, L); -1 - r stands for row r of `rows` (R, D). negative_ids: int64 (n, L), the negative prompts
    of classifier-free guidance (Ho and Salimans 2022); None: there are none. side: in pixels, a multiple of 8; None:
    that of the configuration. each_batch: called before each batch.
    """
    side = side or config.resolution or backbone.resolution
    rows = None if rows is None else rows.to(backbone.device, backbone.word_dtype)
    size = _batch_size(side)
    if negative_ids is None:
        unconditional = backbone.unconditional(min(size, len(input_ids)))
    batches = []
    with backbone.vae_on_device():  # diffusers takes the device of a pipeline from its first part
        for start in range(0, len(input_ids), size):
            each_batch()
            ids = input_ids[start : start + size].to(backbone.device)
            if negative_ids is None:
                negative = unconditional.first(len(ids))
            else:
                negative = backbone.encode(negative_ids[start : start + size].to(backbone.device), rows)
            latents = backbone.sample_latents(
                backbone.encode(ids, rows),
                negative,
                # One generator per image, on the CPU: the initial noise depends on the seed alone, on any device
                [torch.Generator().manual_seed(seed) for seed in seeds[start : start + size]],
                config,
                side,
            )
            batches.append(backbone.decode(latents))
    return np.concatenate(batches) if batches else np.zeros((0, side, side, 3), np.uint8)


def _batch_size(side: int) -> int:
    return min(MAX_BATCH_SIZE, max(1, PIXELS_PER_BATCH // side**2))
