"""The vectors that learning starts from: a word or phrase, the vocabulary's mean, another learned word, or "auto"."""

from __future__ import annotations

import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.training import TimestepsConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone

AUTO_SAMPLES = 8
"""Samples of the fixed batch on which "auto" compares its candidates."""


def initial_vectors(backbone: Backbone, concept: Concept, count: int) -> Tensor:
    """The vectors before the first step, by `Concept.init_from`: (count, D) in `word_dtype` on the device.

    A start of n embeddings is spread over the count vectors: 1 vector is their mean. "auto" must have been replaced by
    `choose_initializer`. Raises ValueError when the initializer gives no token, and when the other word was learned for
    another model.
    """
    if concept.init_from == "vocabulary_mean":
        return words.spread(backbone.vocabulary_mean[None], count)
    if concept.predictor is not None:
        raise ValueError(
            f"init_from {concept.init_from}: prediction.with_prediction makes the word that it predicts"
        )
    if not concept.initial_vectors:
        return words.initial_vectors(backbone, concept.initializer_token, count)
    parts = {name: torch.tensor(vectors) for name, vectors in concept.initial_vectors.items()}
    try:
        rows = backbone.join(parts)
    except ValueError as error:
        raise ValueError(f"init_from {concept.init_from}: the word {error}") from None
    return words.spread(rows.to(backbone.device, backbone.word_dtype), count)


@torch.no_grad()
def choose_initializer(
    backbone: Backbone,
    concept: Concept,
    latent_means: Tensor,
    time_ids: Tensor,
    timesteps: TimestepsConfig | None = None,
    pixel_weights: Tensor | None = None,
) -> str:
    """The candidate word with the lowest loss: argmin in Gal et al. 2022, eq. (2), over candidates instead of vectors.

    All candidates are compared on one fixed batch of AUTO_SAMPLES samples: images and templates in turn, evenly
    spaced quantiles of the noise levels, noise from the concept's seed. latent_means: (N * A * F, C, h, w) of N
    images. time_ids: (N * A * F, 6) of the same; pixel_weights: (N * A * F, 1, h, w), None: all are 1.
    Raises ValueError when no candidate gives a token.
    """
    known = [text for text in concept.initializer_candidates if _has_token(backbone, text)]
    if not known:
        raise ValueError("init_from auto: no candidate gives a token of the model's vocabulary")
    samples = torch.arange(AUTO_SAMPLES)
    images = len(concept.images)
    chosen = (samples % images * (len(latent_means) // images)).to(latent_means.device)
    latents, time_ids = latent_means[chosen], time_ids[chosen]
    weights = None if pixel_weights is None else pixel_weights[chosen]
    generator = torch.Generator().manual_seed(concept.seed)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    evenly = (2 * samples + 1).double() / (2 * AUTO_SAMPLES)
    levels = backbone.levels(evenly, timesteps, latents.shape[-2:]).to(backbone.device)
    templates = [concept.templates[index % len(concept.templates)] for index in samples.tolist()]

    def loss(text: str) -> float:
        ids = words.tokenize(backbone, [words.fill(template, text) for template in templates])
        condition = backbone.encode(ids.to(backbone.device), time_ids=time_ids)
        losses = backbone.denoising_loss(latents, noise, levels, condition, pixel_weights=weights)
        return float(losses.mean())

    return min(known, key=loss)


def _has_token(backbone: Backbone, text: str) -> bool:
    return all(
        any(token != encoder.tokenizer.unk_token_id for token in encoder.token_ids(text))
        for encoder in backbone.encoders
    )
