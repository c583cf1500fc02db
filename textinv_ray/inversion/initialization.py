"""The vectors that learning starts from: a word or phrase, the vocabulary's mean, another learned word, or "auto"."""

from __future__ import annotations

import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion import words
from textinv_ray.inversion.backbone import Backbone

AUTO_SAMPLES = 8
"""Samples of the fixed batch on which "auto" compares its candidates."""


def initial_vectors(backbone: Backbone, concept: Concept, count: int) -> Tensor:
    """The vectors before the first step, by `Concept.init_from`: (count, D) in `word_dtype` on the device.

    "auto" must have been replaced by `choose_initializer`. Raises ValueError when the initializer gives no token, and
    when another word's vectors don't have this model's D.
    """
    if concept.init_from == "vocabulary_mean":
        embeddings = backbone.vocabulary_mean[None]
    elif concept.initial_vectors:
        embeddings = torch.tensor(concept.initial_vectors, device=backbone.device, dtype=backbone.word_dtype)
        if embeddings.shape[1] != backbone.embedding_dim:
            raise ValueError(
                f"init_from {concept.init_from}: its vectors have {embeddings.shape[1]} numbers, "
                f"this model's have {backbone.embedding_dim}; it was learned for another model"
            )
    else:
        embeddings = words.token_embeddings(backbone, concept.initializer_token)
    return words.spread(embeddings, count)


@torch.no_grad()
def choose_initializer(backbone: Backbone, concept: Concept, latent_means: Tensor) -> str:
    """The candidate word with the lowest loss: argmin in Gal et al. 2022, eq. (2), over candidates instead of vectors.

    All candidates are compared on one fixed batch of AUTO_SAMPLES samples: images and templates in turn, evenly
    spaced timesteps, noise from the concept's seed. latent_means: (N * A * F, C, h, w) of N images.
    Raises ValueError when no candidate gives a token.
    """
    known = [text for text in concept.initializer_candidates if _has_token(backbone, text)]
    if not known:
        raise ValueError("init_from auto: no candidate gives a token of the model's vocabulary")
    samples = torch.arange(AUTO_SAMPLES)
    images = len(concept.images)
    latents = latent_means[(samples % images * (len(latent_means) // images)).to(latent_means.device)]
    generator = torch.Generator().manual_seed(concept.seed)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    steps = int(backbone.scheduler.config.num_train_timesteps)
    timesteps = ((2 * samples + 1) * steps // (2 * AUTO_SAMPLES)).to(backbone.device)
    templates = [concept.templates[index % len(concept.templates)] for index in samples.tolist()]

    def loss(text: str) -> float:
        ids = words.tokenize(backbone, [words.fill(template, text) for template in templates])
        hidden_states = backbone.encode_prompts(ids.to(backbone.device))
        return float(backbone.denoising_loss(latents, noise, timesteps, hidden_states).mean())

    return min(known, key=loss)


def _has_token(backbone: Backbone, text: str) -> bool:
    ids = backbone.tokenizer(text, add_special_tokens=False).input_ids
    return any(token != backbone.tokenizer.unk_token_id for token in ids)
