"""`textinv predictor fit --pictures`: pictures of held-out words, compared with the features of their concepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import catalogue, examples
from tests.support.commands import as_options, textinv
from textinv_ray.concepts import predictor
from textinv_ray.concepts.predictor import Example, Predictor
from textinv_ray.config.job import JobConfig
from textinv_ray.service.library import likeness
from textinv_ray.service.models import sources
from textinv_ray.util.errors import UserError


@pytest.fixture
def config(tiny_sd: Path, tiny_clip: Path) -> JobConfig:
    return examples.config(tiny_sd, tiny_clip)


def words(config: JobConfig) -> list[Example]:
    """Words that began as zeros."""
    made = catalogue.examples(12, scorer=config.scoring.model, model=sources.facts(config.model).identity)
    return [replace(one, initial={name: 0 * part for name, part in one.word.items()}) for one in made]


def test_predicted_words_and_initializers(config: JobConfig) -> None:
    """The same words twice give the same; where all began from the predicted word, both are equal."""
    made = words(config)
    fitted = predictor.fit(made)
    found = likeness.measure(made, fitted, config, 3)
    assert found == likeness.measure(made[::-1], fitted, config, 3)
    assert found.words == 3
    assert found.predicted != found.initializer
    assert likeness.measure(made, fitted, config, 99).words == 12
    began = {one.concept_id: word for one, word in predictor.held_out_words(made, fitted)}
    there = [replace(one, initial=began[one.concept_id]) for one in made]
    equal = likeness.measure(there, fitted, config, 3)
    assert equal.predicted == equal.initializer == found.predicted


def test_what_cant_be_drawn(config: JobConfig) -> None:
    made = words(config)
    for other, message in (
        ([replace(one, features=replace(one.features, model="other")) for one in made], "is not the model"),
        ([replace(one, features=replace(one.features, scorer="dino")) for one in made], "features of 'dino'"),
        ([replace(one, initial=None) for one in made], "what their words began from"),
    ):
        with pytest.raises(UserError, match=message):
            likeness.measure(other, predictor.fit(other), config, 1)


def test_the_command_writes_it_into_the_file(
    config: JobConfig, tiny_sd: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, file = catalogue.output(tmp_path / "out", words(config)), tmp_path / "p.safetensors"
    settings = as_options(examples.settings(tiny_sd, tiny_clip))
    assert textinv("predictor", "fit", uri, "-o", str(file), "--pictures", "2", *settings) == 0
    found = Predictor.from_bytes(file.read_bytes()).likeness
    assert found is not None
    line = f"2 words predicted without their own concepts: {found.predicted:.3f}, of what learning began from"
    assert f"likeness of pictures, {line} {found.initializer:.3f}" in capsys.readouterr().out
    assert np.isfinite([found.predicted, found.initializer]).all()
