"""The files of a concept: its result, its history, and which steps are reviewed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import cast

import numpy as np
import torch

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.review import Review
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.service.store import pictures
from textinv_ray.service.store.history import History, Point
from textinv_ray.service.store.records import Option, Result, StopReason
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.util.redact import redact, redact_text

logger = logging.getLogger(__name__)

NOT_FINITE = "the word has values that are not finite: a smaller learning_rate may help"


def history_of(store: Store, task: ConceptTask, config: JobConfig) -> History:
    """The stored history up to the task's step if it is of the same optimisation, else a new one."""
    concept = task.concept
    new = History(concept.state_fingerprint, review_fingerprint(concept, config))
    data = store.read_concept(concept.concept_id, "history.parquet") if task.step else None
    try:
        stored = History.from_bytes(data) if data else new
    except ValueError as error:
        logger.warning("%s: %s", concept.concept_id, error)
        stored = new
    if stored.state_fingerprint != new.state_fingerprint or not stored.points:
        stored = new
    stored.cut(task.step)
    stored.planned_steps = concept.steps
    if stored.review_fingerprint != new.review_fingerprint:
        stored.forget_reviews()
        stored.review_fingerprint = new.review_fingerprint
    for point in stored.points:
        if point.sampled and not _has_picture(store, concept.concept_id, sample_name(point.step)):
            point.sampled = False
    if not stored.points:
        stored.at(0)
    return stored


def _has_picture(store: Store, concept_id: str, name: str) -> bool:
    data = store.read_concept(concept_id, name)
    try:
        return data is not None and bool(pictures.opened(data))
    except ValueError as error:
        logger.warning("%s/%s is made again: %s", concept_id, name, error)
        return False


def result(
    task: ConceptTask,
    history: History,
    word: Mapping[str, torch.Tensor],
    nearest_words: Mapping[str, Sequence[str]],
    samples: Mapping[str, np.ndarray],
    images_mtime_digest: str,
) -> Result:
    """The result of a concept that is done and was reviewed at the first and the last point of its history.

    word: its vectors by text encoder, (V, D of the encoder) each. nearest_words: by encoder.
    samples: those of the last point, prompt -> uint8 (n, H, W, 3). images_mtime_digest: see Key.
    Raises ValueError for a word with values that aren't finite.
    """
    concept = task.concept
    if not all(vectors.isfinite().all() for vectors in word.values()):
        raise ValueError(NOT_FINITE)
    before, after = history.points[0], history.points[-1]
    return Result(
        concept_id=concept.concept_id,
        placeholder_token=concept.placeholder_token,
        initializer_token=concept.initializer_token or redact(concept.init_from),
        learnable_property=concept.learnable_property,
        num_vectors=max(map(len, word.values())),
        embedding_dims={name: vectors.shape[1] for name, vectors in word.items()},
        steps=task.step,
        stopped=cast(StopReason, task.stopped or "steps"),
        best_step=task.best_step,
        learning_rate=concept.learning_rate,
        batch_size=concept.batch_size,
        seed=concept.seed,
        images=len(concept.images),
        heldout_images=0 if concept.heldout is None else len(concept.heldout),
        templates=len(concept.templates),
        captions=len(concept.captions),
        options=options(concept),
        image_uris=tuple(map(redact, concept.image_uris)),
        clip_image_similarity_initializer=before.clip_image_similarity,
        clip_image_similarity=after.clip_image_similarity,
        clip_text_similarity_initializer=before.clip_text_similarity,
        clip_text_similarity=after.clip_text_similarity,
        judge_similarity_initializer=before.judge_similarity,
        judge_similarity=after.judge_similarity,
        final_loss=final_loss(history),
        norms={
            name: tuple(round(float(norm), 6) for norm in vectors.double().norm(dim=1))
            for name, vectors in word.items()
        },
        nearest_words={name: tuple(words) for name, words in nearest_words.items()},
        seconds=round(history.seconds, 3),
        review_seconds=round(history.review_seconds, 3),
        stopping_seconds=round(history.stopping_seconds, 3),
        tags={redact_text(name): redact_text(value) for name, value in concept.tags.items()},
        finished_at=time.time(),
        sample_steps=tuple(point.step for point in history.points if point.sampled),
        sample_prompts=tuple(samples),
        images_per_prompt=max((len(images) for images in samples.values()), default=0),
        fingerprint=concept.fingerprint,
        row_fingerprint=concept.row_fingerprint,
        state_fingerprint=concept.state_fingerprint,
        images_mtime_digest=images_mtime_digest,
    )


def options(concept: Concept) -> dict[str, Option]:
    """The settings beyond plain textual inversion that have another value than by default."""
    defaults = {field.name: field.default for field in fields(Concept)}
    names = [*(name for name, column in COLUMNS.items() if column.is_option), "lr_schedule"]
    given = {name: getattr(concept, name) for name in names if getattr(concept, name) != defaults[name]}
    return {name: redact(value) if isinstance(value, str) else value for name, value in given.items()}


def final_loss(history: History) -> float | None:
    """Mean loss of the last tenth of the steps: a single step's says little."""
    losses = [point.loss for point in history.points if point.loss is not None]
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last) if last else None


def review_steps(concept: Concept, config: JobConfig) -> dict[int, bool]:
    """Steps at which to make samples -> whether to score them. The first and the last are always there."""
    steps = {round(fraction * concept.steps): False for fraction in config.review.sample_at}
    steps |= {round(fraction * concept.steps): True for fraction in config.scoring.evaluate_at}
    return steps | {0: True, concept.steps: True}


def review_fingerprint(concept: Concept, config: JobConfig) -> str:
    """Digest of all that samples and scores depend on besides the word."""
    part = config.result_inputs()
    depends = [
        part["review"],
        part["scoring"],
        concept.prompts,
        concept.edit_prompts,
        concept.initializer_token,
    ]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def review(point: Point, found: Review) -> None:
    """Notes samples, and scores if there are any, at a point of the history."""
    point.sampled = True
    if found.clip_image_similarity is not None:
        point.clip_image_similarity = _finite(found.clip_image_similarity)
        point.clip_text_similarity = _finite(found.clip_text_similarity)
        point.judge_similarity = _finite(found.judge_similarity)


def _finite(score: float | None) -> float | None:
    """The score; null where it isn't a number, as of pictures that have no features."""
    return score if score is not None and math.isfinite(score) else None
