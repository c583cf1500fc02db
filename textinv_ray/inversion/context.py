"""Context regularisation: what text encoders say of the rest of a prompt stays as it is with the initial word.

Wu et al. 2024, "CoRe: Context-Regularized Text Embedding Learning for Text-to-Image Personalization" (arXiv
2408.15914), the regularisation of context embeddings. A word that text encoders can't place disturbs what they say of
the tokens around it; then edits are drawn badly. The term needs no image and no denoiser, so its prompts may be any.
The paper's second term, on attention maps of the UNet, isn't here.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion.families.backbone import Backbone


def check(concept: Concept, backbone: Backbone, learned: Collection[str] | None) -> None:
    """Raises ValueError when the concept asks for the term and it has no effect on the vectors that are learned.

    learned: names of text encoders; None: all.
    """
    if concept.context_weight > 0 and (wrong := backbone.family.lacks_context(learned)):
        raise ValueError(f"context_weight: {wrong}")


def drawn(concept: Concept, step: int) -> int | None:
    """Which of the concept's context prompts the term has in a step; None in steps without it."""
    if concept.context_weight == 0 or step % concept.context_every:
        return None
    # A spawn key that no other draw uses
    seeds = np.random.SeedSequence([concept.seed, step], spawn_key=(2,))
    return int(seeds.generate_state(1, np.uint64)[0]) % len(concept.context_prompts)


def losses(
    backbone: Backbone, ids: Tensor, vectors: Tensor, initial: Tensor, learned: Collection[str] | None
) -> Tensor:
    """The mean of 1 - cos(E(prompt with the word), E(prompt with the initial word)) over a prompt's other tokens.

    The sum over the text encoders E that learn, each of which depends on its own columns of `vectors` alone. Begin, end
    and padding don't count as tokens, and a prompt without any other has 0.
    ids: int64 (B, L) of prompts, as `Backbone.encode` takes them. vectors, initial: (R, D). learned: names of text
    encoders; None: all. Returns (B,) in `word_dtype`; gradients reach `vectors` alone.
    """
    total = vectors.new_zeros(len(ids))
    for encoder in backbone.encoders:
        if encoder.name in backbone.family.context_encoders and (learned is None or encoder.name in learned):
            of_word = encoder.encode(ids, vectors).hidden_states
            with torch.no_grad():
                reference = encoder.encode(ids, initial).hidden_states
            cosines = F.cosine_similarity(of_word.to(total.dtype), reference.to(total.dtype), dim=-1)
            others = encoder.is_context(ids[:, encoder.tokens])
            total = total + ((1 - cosines) * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
    return total
