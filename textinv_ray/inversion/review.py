"""Reviews: samples and CLIP scores of learned words and of their initializers, by which people accept words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.retrieval import Features
from textinv_ray.config.job import JobConfig, ReviewConfig
from textinv_ray.inversion import scoring, words
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.sampling import sample_ids
from textinv_ray.inversion.scoring import Scorer


@dataclass(frozen=True)
class Subject:
    """What is reviewed: a concept's learned word, or its initializer."""

    concept: Concept
    vectors: Tensor | None
    """(V, D) of the learned word; None: the initializer as plain text in the prompt."""


@dataclass(frozen=True)
class Review:
    """Samples and scores of one subject."""

    samples: dict[str, np.ndarray]
    """Review prompt (with `{}`) -> uint8 (images_per_prompt, H, W, 3), with seeds 0, 1, ..."""
    clip_image_similarity: float | None
    """Samples of `scoring.image_prompt` compared with all crops of the reference images (the held-out ones, without
    them the training images), in [-1, 1]; None without a scorer."""
    clip_text_similarity: float | None
    """Mean over editing prompts of the samples' similarity with the prompt without the word, in [-1, 1]; None without
    a scorer or without editing prompts."""
    judge_similarity: float | None = None
    """As clip_image_similarity, by the encoder that had no part in the choice of the word; None without one."""
    features: Features | None = None
    """What identity retrieval goes by: the judge's, without one the scorer's; None without a scorer."""
    image_features: np.ndarray | None = None
    """float32 (N, d): the scorer's features of each training image, the mean over its crops; None without a scorer."""


Pictures = dict[tuple[int, str, int], np.ndarray]
"""Images uint8 (H, W, 3) by (the subject's index, prompt with `{}`, seed) or (INITIALIZER, text, seed)."""
INITIALIZER = -1
"""In place of a subject's index, for images without a learned word."""
KEPT_PICTURES = 256
"""How many images without a learned word `review` keeps: 200 MB at 512 x 512 pixels."""
_FIRST_EVALUATION_SEED = 1_000_000
"""Evaluations use seeds from here on: beyond those of all samples and scores."""


def review(
    backbone: Backbone,
    scorer: Scorer | None,
    subjects: Sequence[Subject],
    config: JobConfig,
    initializers: Pictures | None = None,
    judge: Encoder | None = None,
    each_batch: Callable[[], None] = lambda: None,
) -> list[Review]:
    """Renders and scores all subjects together, in shared batches. An image needed twice is rendered once.

    scorer: None for samples without scores. initializers: keeps the last KEPT_PICTURES images without learned words
    between calls (changed in place), because the concepts of a catalogue share a few initializers, and such an image
    depends on its text and seed alone. judge: scores the same pictures, where there is a scorer. each_batch: called
    before each batch of pictures, of which there may be minutes.
    Raises ValueError for a prompt that is so long that a word is cut off.
    """
    samples = [_seeds(subject.concept.prompts, config.review.images_per_prompt) for subject in subjects]
    scored = [
        _seeds(
            (_image_prompt(subject.concept, config), *subject.concept.edit_prompts), config.scoring.num_images
        )
        if scorer
        else []
        for subject in subjects
    ]
    kept: Pictures = {} if initializers is None else initializers
    wanted = {
        _key(index, subject, prompt, seed): (index, prompt, seed)
        for index, subject in enumerate(subjects)
        for prompt, seed in samples[index] + scored[index]
    }
    missing = {key: picture for key, picture in wanted.items() if key not in kept}
    rendered = dict(
        zip(
            missing,
            _render(backbone, subjects, list(missing.values()), config.review, each_batch),
            strict=True,
        )
    )
    pictures = {key: (rendered if key in rendered else kept)[key] for key in wanted}
    kept.update({key: picture for key, picture in rendered.items() if key[0] == INITIALIZER})
    for key in list(kept)[:-KEPT_PICTURES]:
        del kept[key]

    reviews = []
    for index, subject in enumerate(subjects):
        by_prompt, to_score = (
            _by_prompt((prompt, pictures[_key(index, subject, prompt, seed)]) for prompt, seed in part[index])
            for part in (samples, scored)
        )
        if scorer:
            reviews.append(_scored(scorer, judge, subject.concept, by_prompt, to_score, config))
        else:
            reviews.append(Review(by_prompt, None, None))
    return reviews


def evaluate_words(
    backbone: Backbone,
    scorer: Scorer,
    subjects: Sequence[Subject],
    config: JobConfig,
    each_batch: Callable[[], None] = lambda: None,
) -> list[float]:
    """The evaluation of `stopping.rule: clip`: each word's CLIP image similarity in [-1, 1].

    Its samples start from other noise than those of `review`, so that the choice of a word doesn't bias its scores.
    each_batch: as for `review`.

    Raises ValueError for a prompt that is so long that a word is cut off.
    """
    clip, settings = config.stopping.clip, config.review
    if clip.num_inference_steps is not None:
        settings = settings.model_copy(update={"num_inference_steps": clip.num_inference_steps})
    seeds = range(_FIRST_EVALUATION_SEED, _FIRST_EVALUATION_SEED + clip.num_images)
    wanted = [
        (index, _image_prompt(subject.concept, config), seed)
        for index, subject in enumerate(subjects)
        for seed in seeds
    ]
    rendered = _render(backbone, subjects, wanted, settings, each_batch)
    return [
        scoring.image_similarity(
            scorer.image_features(pictures),
            scoring.crop_features(scorer, subject.concept.images).flatten(0, 1),
        )
        for subject, pictures in zip(subjects, np.split(rendered, len(subjects)), strict=True)
    ]


def _key(index: int, subject: Subject, prompt: str, seed: int) -> tuple[int, str, int]:
    if subject.vectors is None:
        return INITIALIZER, words.fill(prompt, subject.concept.initializer_token), seed
    return index, prompt, seed


def _seeds(prompts: Iterable[str], count: int) -> list[tuple[str, int]]:
    return [(prompt, seed) for prompt in dict.fromkeys(prompts) for seed in range(count)]


def _image_prompt(concept: Concept, config: JobConfig) -> str:
    return config.scoring.image_prompt.of(concept.learnable_property)


def _render(
    backbone: Backbone,
    subjects: Sequence[Subject],
    wanted: Sequence[tuple[int, str, int]],
    settings: ReviewConfig,
    each_batch: Callable[[], None],
) -> np.ndarray:
    """One image for each (subject's index, prompt, seed): uint8 (n, H, W, 3)."""
    first_rows, rows, count = [], [], 0
    for subject in subjects:
        first_rows.append(count)
        if subject.vectors is not None:
            rows.append(subject.vectors.to(backbone.device))
            count += len(subject.vectors)
    lines = []
    for index, prompt, _ in wanted:
        # Only the concept's own word is replaced: another concept's token is plain text in this one's prompts
        lines.append(words.shift(_tokenize(backbone, subjects[index], prompt), first_rows[index]))
    ids = torch.cat(lines) if lines else torch.zeros((0, backbone.max_tokens), dtype=torch.int64)
    seeds = [seed for _, _, seed in wanted]
    vectors = torch.cat(rows) if rows else None
    return sample_ids(backbone, ids, vectors, seeds, settings, each_batch=each_batch)


def _tokenize(backbone: Backbone, subject: Subject, prompt: str) -> Tensor:
    concept = subject.concept
    if subject.vectors is None:
        return words.tokenize(backbone, [words.fill(prompt, concept.initializer_token)])
    return words.tokenize(
        backbone,
        [words.fill(prompt, concept.placeholder_token)],
        {concept.placeholder_token: len(subject.vectors)},
    )


def _by_prompt(pairs: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    grouped: dict[str, list[np.ndarray]] = {}
    for prompt, picture in pairs:
        grouped.setdefault(prompt, []).append(picture)
    return {prompt: np.stack(pictures) for prompt, pictures in grouped.items()}


def _scored(
    scorer: Scorer,
    judge: Encoder | None,
    concept: Concept,
    samples: dict[str, np.ndarray],
    pictures: dict[str, np.ndarray],
    config: JobConfig,
) -> Review:
    """The review of a subject by its pictures, prompt -> uint8 (n, H, W, 3)."""
    prompt, crops = _image_prompt(concept, config), concept.reference_images
    features = {text: scorer.image_features(images) for text, images in pictures.items()}
    by_image = scoring.crop_features(scorer, crops)
    views = by_image.flatten(0, 1)
    if crops is not concept.images:
        by_image = scoring.crop_features(scorer, concept.images)
    image_score, text_score, judge_score = scoring.image_similarity(features[prompt], views), None, None
    pictured = features[prompt]
    if concept.edit_prompts:
        texts = scorer.text_features([scoring.without_word(text) for text in concept.edit_prompts])
        text_scores = [
            scoring.text_similarity(features[edit], text)
            for edit, text in zip(concept.edit_prompts, texts, strict=True)
        ]
        text_score = sum(text_scores) / len(text_scores)
    if judge:
        pictured, views = (
            judge.image_features(pictures[prompt]),
            scoring.crop_features(judge, crops).flatten(0, 1),
        )
        judge_score = scoring.image_similarity(pictured, views)
    found = Features.of(pictured.cpu().numpy(), views.cpu().numpy())
    trained = by_image.mean(dim=1).cpu().numpy()
    return Review(samples, image_score, text_score, judge_score, found, trained)
