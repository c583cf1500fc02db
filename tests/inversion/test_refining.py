"""Fitting a predictor's maps further through the model: lower losses of concepts that the maps never saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import tiny
from tests.support.catalogue import examples
from textinv_ray.concepts import predictor
from textinv_ray.concepts.predictor import Predictor
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import refining
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.refining import Pair

COUNT, STEPS = 12, 30


def pairs(count: int = COUNT, vectors: int = 1, **changes: object) -> list[Pair]:
    return [
        Pair(example, tiny.concept(number, concept_id=example.concept_id, **changes))
        for number, example in enumerate(examples(count, vectors))
    ]


def refined(backbone: StableDiffusion, made: list[Pair], steps: int, size: int = 6) -> Predictor:
    fitted = predictor.fit([pair.example for pair in made])
    return refining.refine(fitted, made, backbone, JobConfig(), steps, size)


@pytest.fixture(scope="module")
def found(backbone: StableDiffusion) -> Predictor:
    return refined(backbone, pairs(), STEPS)


@pytest.mark.slow
def test_how_many_concepts_lie_on_the_device_changes_nothing(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refined(backbone, pairs(), 12, size=3)
    monkeypatch.setattr(refining, "_KEPT_CONCEPTS", 3)
    assert refined(backbone, pairs(), 12, size=3).to_bytes() == whole.to_bytes()


@pytest.mark.slow
def test_it_lowers_the_loss_of_concepts_that_it_never_saw(found: Predictor) -> None:
    made = pairs()
    (refinement,) = found.refinements
    assert refinement.is_better
    assert refinement.loss < refinement.loss_before
    assert (refinement.words, len(refinement.left_out), refinement.steps) == (COUNT - 2, 2, STEPS)
    before = predictor.fit([pair.example for pair in made])
    assert found.maps[1, "clip_l"].variant == before.maps[1, "clip_l"].variant
    again = Predictor.from_bytes(found.to_bytes())
    assert again.refinements == found.refinements
    assert again.to_bytes() == found.to_bytes()
    seen = [
        (one.concept_id, word) for one, word in predictor.held_out_words([p.example for p in made], found)
    ]
    assert [name for name, _ in seen] == list(refinement.left_out)
    images = next(p.example for p in made if p.example.concept_id == seen[0][0]).features.images
    np.testing.assert_array_equal(seen[0][1]["clip_l"], found.word(images, 1)["clip_l"])


@pytest.mark.slow
def test_left_out_concepts_have_no_part_in_the_maps(backbone: StableDiffusion, found: Predictor) -> None:
    """Nor has the order: apart from the loss of those concepts, all is equal to the bit."""
    (left_out,) = (one.left_out for one in found.refinements)
    other = [
        replace(pair, concept=replace(pair.concept, images=255 - pair.concept.images))
        if pair.example.concept_id in left_out
        else pair
        for pair in reversed(pairs())
    ]
    changed = refined(backbone, other, STEPS)
    assert changed.refinements[0].loss != found.refinements[0].loss
    assert changed.refinements[0].is_better
    assert replace(changed, refinements=()).to_bytes() == replace(found, refinements=()).to_bytes()


def test_maps_that_are_no_better_stay_as_they_were(backbone: StableDiffusion) -> None:
    made = pairs()
    found = refined(backbone, made, 0)
    (refinement,) = found.refinements
    assert refinement.loss == refinement.loss_before
    assert not refinement.is_better
    fitted = predictor.fit([pair.example for pair in made])
    assert replace(found, refinements=()).to_bytes() == fitted.to_bytes()


def test_concepts_with_settings_of_their_own(backbone: StableDiffusion) -> None:
    """Several vectors, other initial words, several samples a step: what counts is the word that is predicted."""
    made = pairs(vectors=2, num_vectors=5, vectors_added_at=(1,), per_image_probability=0.5, batch_size=3)
    (refinement,) = refined(backbone, made, 2).refinements
    assert refinement.num_vectors == 2
    assert np.isfinite([refinement.loss, refinement.loss_before]).all()


@pytest.mark.slow
def test_all_text_encoders_of_a_model_take_part(tiny_sdxl: Path) -> None:
    backbone = tiny.load_sdxl(tiny_sdxl)
    sizes = {encoder.name: encoder.dim for encoder in backbone.encoders}
    made = [Pair(one, tiny.concept(number)) for number, one in enumerate(examples(COUNT, 1, sizes))]
    fitted = predictor.fit([pair.example for pair in made])
    found = refining.refine(fitted, made, backbone, JobConfig(), 15, 5)
    (refinement,) = found.refinements
    assert refinement.is_better
    seen = [pair.example for pair in made if pair.example.concept_id not in refinement.left_out]
    again = predictor.fit_again(seen, fitted, 1)
    for key, one in found.maps.items():
        assert one.words == COUNT - 2
        assert not np.array_equal(one.arrays["weights"], again.maps[key].arrays["weights"])
