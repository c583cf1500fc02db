from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import tiny
from tests.support.catalogue import examples
from textinv_ray.concepts import predictor
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import scoring
from textinv_ray.inversion.prediction import with_prediction
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask


@pytest.fixture(scope="module")
def scorer(tiny_clip: Path) -> Scorer:
    return Scorer.load(str(tiny_clip), device="cpu", dtype="float32")


def test_the_word_of_the_images_is_what_learning_starts_from(scorer: Scorer, tiny_sd: Path) -> None:
    backbone, fitted = tiny.load_sd(tiny_sd), predictor.fit(examples(12, 2))
    data = np.frombuffer(fitted.to_bytes(), np.uint8)
    concept = tiny.concept(0, init_from="p.safetensors", initializer_token="", num_vectors=2, predictor=data)
    with pytest.raises(ValueError, match=r"init_from p\.safetensors: .*with_prediction"):
        ConceptTask(concept, backbone, JobConfig())
    task = ConceptTask(with_prediction(concept, scorer), backbone, JobConfig())
    features = scoring.crop_features(scorer, concept.images).mean(dim=1).numpy()
    expected = fitted.word(features, 2)["clip_l"]
    torch.testing.assert_close(task.vectors, torch.tensor(expected))
    other = with_prediction(replace(concept, images=tiny.concept(1).images), scorer)
    assert np.abs(np.array(other.initial_vectors["clip_l"]) - expected).max() > 1e-3


def test_a_concept_without_a_predictor_stays_as_it_is(scorer: Scorer) -> None:
    concept = tiny.concept(0)
    assert with_prediction(concept, scorer) is concept
