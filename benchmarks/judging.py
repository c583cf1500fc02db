"""Words by an encoder that had no part in them, retrieval, editability and the paper's objective."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
LOSS, JUDGE, WITHIN = "loss", "judge", "retrieval within style"
SCORES = ("clip", JUDGE, "edit", "retrieval", WITHIN, LOSS)
"""Likeness by the scoring model and by the judge, editability, retrieval among all concepts and among those drawn in
the same style, denoising loss (lower is better)."""
STYLE_TAG = "drawn_in"
"""Of a manifest's tags: what `training.heldout` names a character's style by."""
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
    style: str
    """That the concept is drawn in; empty where its tags don't say."""
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
            style = word.concept.tags.get(STYLE_TAG, "")
            judged.append(Judged(name, style, made, heldout_loss(backbone, word, config)))
    return judged


def values_of(judged: Sequence[Judged]) -> dict[str, list[float]]:
    """Score -> a value for each concept, its seeds averaged.

    Without a judge there are fewer scores, and WITHIN only where each concept has rivals of its style.
    """
    reviews, names = [one.review for one in judged], [one.name for one in judged]
    found = [one for one in judged if one.review.features is not None]
    values: dict[str, list[float | None]] = {
        "clip": [one.clip_image_similarity for one in reviews],
        JUDGE: [one.judge_similarity for one in reviews],
        "edit": [one.clip_text_similarity for one in reviews],
        "retrieval": list(retrieved(found, lambda one, other: True)),
        WITHIN: list(retrieved(found, lambda one, other: bool(one.style) and one.style == other.style)),
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


def retrieved(
    judged: Sequence[Judged], are_rivals: Callable[[Judged, Judged], bool]
) -> Iterator[float | None]:
    """retrieval_top1 of each word among its rivals, one of each concept; None: it has none.

    Seeds of one concept are no rivals.
    """
    firsts = {one.name: one for one in reversed(judged)}
    for word in judged:
        rivals = [one for name, one in firsts.items() if name != word.name and are_rivals(word, one)]
        blank = [
            dataclasses.replace(one.review.features, pictures=one.review.features.pictures[:0])
            for one in rivals
            if one.review.features is not None
        ]
        yield retrieval_top1([word.review.features, *blank])[0] if blank and word.review.features else None
