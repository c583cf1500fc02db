"""Whether pictures of predicted words resemble their concepts: each word predicted without its own concept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from textinv_ray.concepts.predictor import Example, Likeness, Predictor, held_out_words
from textinv_ray.concepts.word_files import Word
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.scoring import image_similarity
from textinv_ray.inversion.words import fill, rows_of
from textinv_ray.service.models import loading, sources
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact

_TOKEN = "<predicted>"
_SEED = 0  # of the choice of words


def measure(examples: Sequence[Example], fitted: Predictor, config: JobConfig, count: int) -> Likeness:
    """Draws `scoring.num_images` pictures of `scoring.image_prompt` for `count` words, and for what each began from.

    fitted: `predictor.fit` of the examples. The same pictures' seeds for all. Raises UserError as `check`, and where
    the initial words aren't known.
    """
    check(fitted, config)
    known = [(one, word) for one, word in held_out_words(examples, fitted) if one.initial]
    if not known:
        raise UserError("--pictures: the outputs don't say what their words began from")
    order = np.random.default_rng(_SEED).permutation(len(known))[:count]
    backbone, scorer = loading.backbone(config), loading.scorer(config)
    seeds = range(config.scoring.num_images)

    def likeness(example: Example, word: Word) -> float:
        prompt = fill(config.scoring.image_prompt.of(example.learnable_property), _TOKEN)
        rows = {_TOKEN: rows_of(backbone, word).to(backbone.device)}
        drawn = sample_images(backbone, rows, [prompt] * len(seeds), seeds, config.review)
        features = scorer.image_features(drawn).cpu()
        images = torch.nn.functional.normalize(torch.tensor(example.features.images), dim=1)
        return image_similarity(features, images)

    pairs = [
        (likeness(example, word), likeness(example, example.initial or word))
        for example, word in (known[index] for index in sorted(order))
    ]
    predicted, initial = np.mean(pairs, axis=0)
    return Likeness(len(pairs), round(float(predicted), 4), round(float(initial), 4))


def check(fitted: Predictor, config: JobConfig) -> None:
    """Raises UserError for a model or scoring model other than the predictor's."""
    if sources.facts(config.model).identity != fitted.model:
        raise UserError(
            f"--pictures: {redact(config.model.path)} is not the model that the words were learned for"
        )
    scoring_model = redact(config.scoring.model)
    if scoring_model != fitted.scorer:
        raise UserError(
            f"--pictures: scoring.model is {scoring_model!r}, the words have features of {fitted.scorer!r}"
        )
