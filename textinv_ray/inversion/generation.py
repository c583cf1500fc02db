"""Image generation for requests with their own prompt, learned words, negative prompt, seeds, size and guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.sampling import sample_ids


@dataclass(frozen=True)
class Request:
    """Images of one prompt."""

    prompt: str
    words: tuple[str, ...] = ()
    """Placeholder tokens in `prompt` and `negative_prompt` that stand for learned words. Any other is plain text."""
    negative_prompt: str | None = None
    """What guidance leads away from; None: nothing. With SDXL this differs from an empty prompt."""
    seed: int = 0
    count: int = 1
    """Number of images, with seeds `seed`, `seed` + 1, ..."""
    size: int | None = None
    """Side in pixels, a multiple of 8; None: that of the configuration."""
    guidance_scale: float | None = None
    """At least 1; None: that of the configuration."""

    @property
    def seeds(self) -> range:
        """One seed per image."""
        return range(self.seed, self.seed + self.count)


def generate(
    backbone: Backbone,
    vectors_by_token: Mapping[str, Tensor],
    requests: Sequence[Request],
    config: ReviewConfig,
) -> list[np.ndarray]:
    """Images of each request: uint8 (count, H, W, 3). Requests of the same size and guidance share batches.

    vectors_by_token: (V, D) for each word that a request names. An image depends on its request and its seed alone;
    the rest of its batch changes at most the rounding of a pixel.
    Raises ValueError for a prompt that is so long that a word is cut off, and for what the model doesn't have.
    """
    for request in requests:
        if wrong := backbone.family.wrong_side(request.size):
            raise ValueError(f"size: {wrong}")
        if request.negative_prompt and not backbone.takes_negative_prompts:
            raise ValueError(f"negative prompts: this {backbone.family.name} model takes none")
    first_row, count = {}, 0
    for token, vectors in vectors_by_token.items():
        first_row[token] = count
        count += len(vectors)
    rows = torch.cat(list(vectors_by_token.values())) if vectors_by_token else None
    sizes = {token: len(vectors) for token, vectors in vectors_by_token.items()}
    groups: dict[tuple[int, float, bool], list[tuple[int, int]]] = {}
    for index, request in enumerate(requests):
        guidance = config.guidance_scale if request.guidance_scale is None else request.guidance_scale
        size = request.size or config.resolution or backbone.resolution
        key = size, guidance, request.negative_prompt is None
        group = groups.setdefault(key, [])
        group += [(index, seed) for seed in request.seeds]
    lines = [
        [
            _tokenize(backbone, text, request.words, sizes, first_row, negative=text_number > 0)
            for text_number, text in enumerate((request.prompt, request.negative_prompt or ""))
        ]
        for request in requests
    ]
    pictures: list[list[np.ndarray]] = [[] for _ in requests]
    for (side, guidance, unconditional), wanted in groups.items():
        images = sample_ids(
            backbone,
            torch.cat([lines[index][0] for index, _ in wanted]),
            rows,
            [seed for _, seed in wanted],
            config.model_copy(update={"guidance_scale": guidance}),
            negative_ids=None if unconditional else torch.cat([lines[index][1] for index, _ in wanted]),
            side=side,
        )
        for (index, _), image in zip(wanted, images, strict=True):
            pictures[index].append(image)
    return [np.stack(images) for images in pictures]


def _tokenize(
    backbone: Backbone,
    text: str,
    tokens: Sequence[str],
    sizes: Mapping[str, int],
    first_row: Mapping[str, int],
    *,
    negative: bool,
) -> Tensor:
    """Token ids, int64 (1, L), with -1 - row of the shared table for learned words.

    Only the request's own words are replaced: in its prompt, the name of another request's word is plain text.
    """
    line = words.tokenize(backbone, [text], {token: sizes[token] for token in tokens}, negative=negative)
    shared, own_first = line.clone(), 0
    for token in tokens:
        own = (line < -own_first) & (line >= -own_first - sizes[token])
        shared = torch.where(own, line + own_first - first_row[token], shared)
        own_first += sizes[token]
    return shared
