"""Images from prompts with learned words, sampled by diffusers' StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.backbone import Backbone

MAX_BATCH_SIZE = 32
"""Images per batch at most: more gain nothing."""
PIXELS_PER_BATCH = 8 * 512**2
"""8 images of 512 x 512 pixels, whose sampling fits in memory beside a pack."""
SAMPLERS = {"dpmsolver++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}


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
) -> np.ndarray:
    """`sample_images` for tokenized prompts. Returns uint8 (n, side, side, 3).

    input_ids: int64 (n, L); ids from `vocabulary_size` on are rows of `rows` (R, D). negative_ids: int64 (n, L), the
    negative prompts of classifier-free guidance (Ho and Salimans 2022); None: the empty prompt. side: in pixels, a
    multiple of 8; None: the model's resolution.
    """
    side = side or backbone.resolution
    pipeline = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=SAMPLERS[config.sampler].from_config(backbone.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    rows = None if rows is None else rows.to(backbone.device, backbone.word_dtype)
    unconditional = backbone.encode_prompts(words.tokenize(backbone, [""]).to(backbone.device))
    size = _batch_size(side)
    batches = []
    for start in range(0, len(input_ids), size):
        ids = input_ids[start : start + size].to(backbone.device)
        negative = unconditional.expand(len(ids), -1, -1)
        if negative_ids is not None:
            negative = backbone.encode_prompts(negative_ids[start : start + size].to(backbone.device), rows)
        batches.append(
            pipeline(
                prompt_embeds=backbone.encode_prompts(ids, rows),
                negative_prompt_embeds=negative,
                height=side,
                width=side,
                # One generator per image, on the CPU: the initial noise depends on the seed alone, on any device
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + size]],
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                output_type="np",
            ).images
        )
    images = np.concatenate(batches) if batches else np.zeros((0, side, side, 3))
    return (images * 255).round().astype(np.uint8)


def _batch_size(side: int) -> int:
    return min(MAX_BATCH_SIZE, max(1, PIXELS_PER_BATCH // side**2))
