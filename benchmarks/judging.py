"""Words by an encoder that had no part in them, retrieval, editability and the paper's objective."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality_vs_steps import Word
from textinv_ray.concepts.retrieval import retrieval_top1
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.review import Pictures, Review, Subject, review
from textinv_ray.inversion.scoring import Scorer

HELDOUT = Path(__file__).with_name("heldout.parquet")
"""Twelve characters that no training saw."""
LOSS, JUDGE = "loss", "judge"
SCORES = ("clip", JUDGE, "edit", "retrieval", LOSS)
"""Likeness by the scoring model and by the judge, editability, retrieval, denoising loss (lower is better)."""
LOSS_SAMPLES = 64
"""Of each word's denoising loss: images in turn, evenly spaced noise levels."""
WORDS_AT_ONCE = 12


@torch.no_grad()
def heldout_loss(backbone: Backbone, word: Word, config: JobConfig) -> float:
    """Mean denoising loss on the reference images: LOSS_SAMPLES draws that depend on the concept's seed alone."""
    concept, images = word.concept, word.concept.reference_images
    assert word.vectors is not None
    means, _ = backbone.latent_moments(images.reshape(-1, *images.shape[2:]))
    numbers = torch.arange(LOSS_SAMPLES)
    latents = means[numbers % len(means)]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(concept.seed)).to(latents)
    evenly = (2 * numbers + 1).double() / (2 * LOSS_SAMPLES)
    levels = backbone.levels(evenly, config.training.timesteps, latents.shape[-2:]).to(backbone.device)
    prompts = [
        words.fill(concept.templates[number % len(concept.templates)], concept.placeholder_token)
        for number in numbers.tolist()
    ]
    ids = words.tokenize(backbone, prompts, {concept.placeholder_token: len(word.vectors)})
    condition = backbone.encode(ids.to(backbone.device), word.vectors.to(backbone.device))
    return float(backbone.denoising_loss(latents, noise, levels, condition).mean())


@dataclasses.dataclass(frozen=True)
class Judged:
    """What is known of one word."""

    name: str
    """Of the concept, without its seed."""
    review: Review
    loss: float


def judge_each(
    found: Sequence[Word],
    backbone: Backbone,
    scorer: Scorer,
    judge: Encoder | None,
    config: JobConfig,
    initializers: Pictures,
) -> list[Judged]:
    """Of each word, in their order. initializers: pictures that are kept from call to call."""
    judged = []
    for first in range(0, len(found), WORDS_AT_ONCE):
        some = found[first : first + WORDS_AT_ONCE]
        subjects = [Subject(word.concept, word.vectors) for word in some]
        for word, made in zip(
            some, review(backbone, scorer, subjects, config, initializers, judge), strict=True
        ):
            name = word.concept.concept_id.rpartition("-seed")[0]
            judged.append(Judged(name, made, heldout_loss(backbone, word, config)))
    return judged


def values_of(judged: Sequence[Judged]) -> dict[str, list[float]]:
    """Score -> a value for each concept, its seeds averaged. Without a judge there are fewer scores."""
    reviews, names = [one.review for one in judged], [one.name for one in judged]
    features = [one.features for one in reviews]
    values: dict[str, list[float | None]] = {
        "clip": [one.clip_image_similarity for one in reviews],
        JUDGE: [one.judge_similarity for one in reviews],
        "edit": [one.clip_text_similarity for one in reviews],
        "retrieval": list(retrieved(names, [one for one in features if one is not None])),
        LOSS: [one.loss for one in judged],
    }
    return {
        score: [
            statistics.mean(
                value for of, value in zip(names, each, strict=True) if of == name and value is not None
            )
            for name in dict.fromkeys(names)
        ]
        for score, each in values.items()
        if None not in each
    }


def retrieved(names: Sequence[str], features: Sequence[Any]) -> Iterator[float]:
    """retrieval_top1 of each word among the concepts: seeds of one concept are no rivals."""
    first = {name: names.index(name) for name in names}
    for name, own in zip(names, features, strict=True):
        others = [features[place] for of, place in first.items() if of != name]
        blank = [dataclasses.replace(one, pictures=one.pictures[:0]) for one in others]
        yield retrieval_top1([own, *blank])[0]
