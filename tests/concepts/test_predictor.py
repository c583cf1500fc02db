"""Predictors: fitted twice equal to the bit, whatever the order; exact where words follow from images; strict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from tests.support.catalogue import examples
from textinv_ray.concepts import predictor, variants
from textinv_ray.concepts.predictor import MIN_WORDS, Likeness, Map, Predictor
from textinv_ray.concepts.word_files import store_word

BOTH = {"clip_l": 8, "clip_g": 6}


def test_words_that_follow_from_images_are_found() -> None:
    """Of several encoders and of several vectors."""
    fitted = predictor.fit(examples(60, 2, BOTH) + examples(60, 1, BOTH, first=100))
    assert fitted.counts == (1, 2)
    assert {key: one.words for key, one in fitted.maps.items()} == {
        (count, name): 60 for count in (1, 2) for name in BOTH
    }
    assert all(one.r2 > 0.99 for one in fitted.maps.values())
    for count in (1, 2):
        (unseen,) = examples(1, count, BOTH, first=1000)
        found = fitted.word(unseen.features.images, count)
        assert list(found) == list(BOTH)
        for name, vectors in unseen.word.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], vectors, atol=0.05)


def test_twice_and_in_another_order_it_is_equal_to_the_bit() -> None:
    catalogue = examples(25)
    data = predictor.fit(catalogue).to_bytes()
    assert predictor.fit(catalogue[::-1]).to_bytes() == data
    assert predictor.fit(examples(24)).to_bytes() != data


@pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda variant: variant.name)
def test_from_its_file_it_predicts_the_same_words(variant: variants.Variant) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 2, 8))
    data = variants.Data(x, y, np.arange(40.0) % 2, rng.uniform(0.5, 1.5, 40))
    arrays = variants.fit(data, variant).arrays
    fitted = Predictor(
        "model-1",
        "clip",
        {
            (2, "clip_l"): Map(
                {name: part.astype(np.float32) for name, part in arrays.items()},
                40,
                variant.name,
                1.0,
                {variant.name: 0.5},
            )
        },
    )
    images = rng.normal(size=(3, 6)).astype(np.float32)
    word = Predictor.from_bytes(fitted.to_bytes()).word(images, 2)
    np.testing.assert_array_equal(word["clip_l"], fitted.word(images, 2)["clip_l"])


def test_it_comes_back_from_its_file() -> None:
    fitted = predictor.fit(examples(12, 2, BOTH))
    data = fitted.to_bytes()
    assert predictor.is_predictor(data)
    found = Predictor.from_bytes(data)
    assert found.to_bytes() == data
    assert (found.model, found.scorer) == ("model-1", "clip")
    note = json.loads(
        json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["textinv_ray"]
    )
    assert [(one["words"], one["num_vectors"]) for one in note["maps"]] == [(12, 2)] * 2
    for one in note["maps"]:
        assert set(one["r2"]) == {"ridge", "kernel", "direction", "standardised"}
        assert one["r2"][one["variant"]] == pytest.approx(max(one["r2"].values()), abs=1e-3)
    drawn = replace(found, likeness=Likeness(5, 0.5, 0.125))
    assert Predictor.from_bytes(drawn.to_bytes()).likeness == drawn.likeness
    assert drawn.only(2).to_bytes() == data, "what concepts begin from is the same"
    assert not predictor.is_predictor(store_word("<x>", {"clip_l": np.ones((1, 4), np.float32)}))
    assert not predictor.is_predictor(b"rubbish")


def test_numbers_of_vectors_with_too_few_words_are_left_out() -> None:
    fitted = predictor.fit(examples(MIN_WORDS) + examples(MIN_WORDS - 1, 2, first=50))
    assert fitted.counts == (1,)
    assert (fitted.count_nearest(1), fitted.count_nearest(2)) == (1, 1)
    both = predictor.fit(examples(MIN_WORDS) + examples(MIN_WORDS, 2, first=50))
    assert (both.count_nearest(2), both.count_nearest(3)) == (2, 1)
    assert both.only(2).counts == (2,)


@pytest.mark.parametrize(
    ("catalogue", "message"),
    [
        (lambda: [], r"at least 10 words .* there are none"),
        (
            lambda: examples(3) + examples(4, 2, first=9),
            r"at least 10 words .* there are 3 of 1 vectors, 4 of 2 vectors",
        ),
        (lambda: examples(9) + examples(9, model="model-2"), "of several models: model-1, model-2; fit one"),
        (lambda: examples(9) + examples(9, scorer="dino"), "of several scoring models: clip, dino; fit one"),
    ],
)
def test_what_makes_no_predictor(catalogue: Callable[[], list[predictor.Example]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.fit(catalogue())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model-2", "clip", 1), "was fitted on words of another model"),
        (
            ("model-1", "dino", 1),
            "reads features of the scoring model 'clip', the job's scoring.model is 'dino'",
        ),
        (("model-1", "clip", 3), r"no words of 3 vectors \(it has: 1\)"),
    ],
)
def test_it_is_refused_elsewhere(arguments: tuple[str, str, int], message: str) -> None:
    fitted = predictor.fit(examples(12))
    fitted.check("model-1", "clip", 1)
    with pytest.raises(ValueError, match=message):
        fitted.check(*arguments)


def bent(examples_of: list[predictor.Example]) -> list[predictor.Example]:
    """Words that no linear map of the features gives."""
    return [
        replace(one, word={name: np.square(part) for name, part in one.word.items()}) for one in examples_of
    ]


def test_a_variant_that_predicts_better_is_stored_and_used() -> None:
    """Here a kernel, whose file has more than weights; its words are those of the variants' own prediction."""
    catalogue = bent(examples(60, dim=3))
    fitted = Predictor.from_bytes(predictor.fit(catalogue).to_bytes())
    found = fitted.maps[1, "clip_l"]
    assert found.variant == "kernel"
    assert found.r2 == found.r2_of["kernel"] > found.r2_of["ridge"] + 0.1
    (unseen,) = bent(examples(1, dim=3, first=1000))
    features = unseen.features.images.mean(axis=0, dtype=np.float64)[None]
    arrays = {name: part.astype(np.float64) for name, part in found.arrays.items()}
    np.testing.assert_allclose(
        fitted.word(unseen.features.images, 1)["clip_l"],
        variants.predict(arrays, features, np.zeros(1)),
        rtol=1e-6,
    )


def test_objects_and_styles_by_maps_of_their_own() -> None:
    """Where they contradict each other."""
    objects = examples(40)
    styles = [
        replace(one, learnable_property="style", word={name: -part for name, part in one.word.items()})
        for one in examples(40, first=100)
    ]
    fitted = Predictor.from_bytes(predictor.fit(objects + styles).to_bytes())
    assert fitted.maps[1, "clip_l"].variant == "apart"
    (unseen,) = examples(1, first=1000)
    for kind, sign in (("object", 1), ("style", -1)):
        found = fitted.word(unseen.features.images, 1, kind)  # type: ignore[arg-type]
        np.testing.assert_allclose(found["clip_l"], sign * unseen.word["clip_l"], atol=0.2)


def test_held_out_words_dont_know_their_own_concept() -> None:
    catalogue = examples(30)
    changed = [
        replace(catalogue[4], word={"clip_l": catalogue[4].word["clip_l"] + 50}),
        *catalogue[:4],
        *catalogue[5:],
    ]
    fitted = predictor.fit(catalogue)
    found, again = (
        {one.concept_id: word["clip_l"] for one, word in predictor.held_out_words(words, fitted)}
        for words in (catalogue, changed)
    )
    np.testing.assert_array_equal(found["c4"], again["c4"])
    assert sum(not np.array_equal(found[name], again[name]) for name in found) > 20
    errors = sum(np.square(found[one.concept_id] - one.word["clip_l"]).sum() for one in catalogue)
    assert errors > 0


def test_features_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 16 numbers of an image, the scoring model gives 4"):
        predictor.fit(examples(12)).word(np.ones((2, 4), np.float32), 1)


@pytest.mark.parametrize("name", ["1/clip_l/weights", "1/clip_l/bias"])
@pytest.mark.parametrize("damage", [None, np.ones((3, 3, 3)), np.full((16, 32), np.nan)])
def test_damage_is_refused(name: str, damage: np.ndarray | None) -> None:
    data = predictor.fit(examples(12)).to_bytes()
    tensors = safetensors.numpy.load(data)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if damage is None:
        del tensors[name]
    else:
        tensors[name] = damage
    with pytest.raises(ValueError, match="the predictor can't be read"):
        Predictor.from_bytes(safetensors.numpy.save(tensors, metadata))
