"""The prompts that a concept learns from, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone


def image_words(concept: Concept) -> int:
    """How many images have a word of their own: all, or 0 without `per_image_probability`."""
    return len(concept.images) if concept.per_image_probability > 0 else 0


def of_training(concept: Concept, backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """All prompts as int64 (stages * (1 + image words) * texts, L), on the model's device.

    A stage is a number of vectors that the word has in turn (Gal et al. 2022, section 5.2, "Progressive extensions").
    Each stage has all prompts with the word alone, then all with the first image's word beside it, and so on
    ("a photo of {} with S_1": the same section, "Per-image tokens").
    """
    word = concept.placeholder_token
    # Unicode's private use area: no prompt contains these names
    beside = {f"\ue000image {index}\ue001": 1 for index in range(image_words(concept))}
    filled = [word, *(f"{word} with {image_word}" for image_word in beside)]
    prompts = [words.fill(prompt, by) for by in filled for prompt in texts]
    stages = []
    for absent in range(len(concept.vectors_added_at), -1, -1):
        count = concept.num_vectors + len(concept.vectors_added_at) - absent
        ids = words.tokenize(backbone, prompts, {word: count, **beside})
        for prompt, line in zip(prompts, ids, strict=True):
            if line.min() >= 0:
                raise ValueError(f"the prompt {prompt!r} doesn't contain the word {word!r}")
        # The rows of vectors that haven't joined lie between the word's and the images': skip them.
        stages.append(torch.where(ids < -count, ids - absent, ids))
    return torch.cat(stages).to(backbone.device)


def of_context(concept: Concept, backbone: Backbone) -> Tensor:
    """The prompts of context regularisation as int64 (stages * prompts, L), on the model's device; (0, L) without."""
    word, stages = concept.placeholder_token, range(1 + len(concept.vectors_added_at))
    texts = [words.fill(prompt, word) for prompt in concept.context_prompts]
    if not texts:
        return torch.zeros((0, backbone.max_tokens), dtype=torch.int64, device=backbone.device)
    ids = [words.tokenize(backbone, texts, {word: concept.num_vectors + stage}) for stage in stages]
    return torch.cat(ids).to(backbone.device)
