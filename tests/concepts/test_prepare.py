"""Concepts: defaults, where learning starts, and fingerprints of equal meanings (the rest: test_fingerprints.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.prepared import CONFIG, ROW, make, png
from tests.support.web import serve
from textinv_ray.concepts import prepare, templates
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.concepts.settings import concept_seed


def test_defaults_are_filled_in() -> None:
    concept = make()
    training = CONFIG.training
    assert concept.placeholder_token == "<rex>"
    assert concept.initializer_token == "dog"
    assert concept.learnable_property == "object"
    assert (concept.steps, concept.batch_size, concept.num_vectors) == (
        training.steps,
        training.batch_size,
        1,
    )
    assert concept.templates == templates.templates("object")
    assert concept.captions == ()
    assert concept.prompts == CONFIG.review.prompts.of("object")
    assert concept.edit_prompts == CONFIG.scoring.edit_prompts.of("object")
    assert concept.images.shape == (2, 1, 16, 16, 3)
    assert concept.images[:, 0, 8, 8].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert concept.image_uris == ("1.png", "images[1]")
    assert make(initializer_token=None).initializer_token == "character"


def test_the_row_overrides() -> None:
    values: dict[str, Any] = {"steps": 7, "learning_rate": 0.5, "batch_size": 2, "seed": 11, "num_vectors": 3}
    concept = make(**values, learnable_property="style", tags={"team": "a"}, placeholder_token="<x>")
    assert {name: getattr(concept, name) for name in values} == values
    assert concept.templates == templates.templates("style")
    assert concept.edit_prompts == CONFIG.scoring.edit_prompts.of("style")
    assert concept.tags == {"team": "a"}


def test_styles_have_settings_of_their_own() -> None:
    own = {"optimizer": "directional", "learning_rate": 0.3, "lr_schedule": "cosine"}
    of_style = ["training.style={optimizer: directional, learning_rate: 0.3, lr_schedule: cosine}"]

    def values(concept: Concept) -> dict[str, Any]:
        return {name: getattr(concept, name) for name in own}

    assert values(make(learnable_property="style", overrides=of_style)) == own
    assert values(make(learnable_property="style")) == own, "the preset has them"
    assert make(overrides=of_style).fingerprint == make().fingerprint, "objects have those of training"
    rows: tuple[dict[str, Any], ...] = (
        {"learning_rate": 0.5},
        {"optimizer": "adam"},
        {"optimizer": "directional"},
    )
    for row in rows:  # a rate belongs to its optimizer
        style = make(learnable_property="style", **row, overrides=of_style)
        assert style.fingerprint == make(learnable_property="style", **row).fingerprint
    replaced = ["training.lr_schedule=linear"]  # which objects have alone
    style = make(learnable_property="style", overrides=of_style)
    assert style.fingerprint == make(learnable_property="style", overrides=[*of_style, *replaced]).fingerprint
    alike = ["training.style.lr_schedule=constant"]  # as training.lr_schedule is
    plain = make(learnable_property="style", overrides=["training.style={}"])
    assert (
        make(learnable_property="style", overrides=["training.style={}", *alike]).fingerprint
        == plain.fingerprint
    )


def test_the_placeholder_itself_marks_the_words_place() -> None:
    concept = make(
        placeholder_token="<x>", captions=["my <x>", "a {}"], prompts=["<x> at sea"], templates=["<x>"]
    )
    assert concept.captions == ("my {}", "a {}")
    assert concept.prompts == ("{} at sea",)
    assert concept.templates == ("{}",)


def test_the_configurations_resolution_wins() -> None:
    assert make(overrides=["data.resolution=24"]).images.shape[2:4] == (24, 24)


def test_rows_that_a_check_refuses() -> None:
    with pytest.raises(ValueError, match="rex: the row has no images"):
        make(images=[])
    with pytest.raises(ValueError, match="rex: the row has no initializer_token"):
        make(initializer_token=None, overrides=["training.initializer_token=null"])
    with pytest.raises(ImageError, match=r"images\[0\]: has neither bytes nor a path"):
        make(images=[{"bytes": None, "path": None}])


@given(st.integers(0, 2**63 - 1), st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True))
def test_seeds_are_in_range_and_differ(seed: int, concept_id: str) -> None:
    value = concept_seed(seed, concept_id)
    assert 0 <= value < 2**63
    assert value == concept_seed(seed, concept_id)
    assert value != concept_seed(seed, concept_id + "x")


def digests(concept: Concept) -> tuple[str, str, str]:
    return concept.fingerprint, concept.row_fingerprint, concept.state_fingerprint


@pytest.mark.parametrize(
    "same",
    [
        {"row": dict(reversed(ROW.items()))},
        {"tags": {"team": "b"}},
        {"steps": CONFIG.training.steps, "learnable_property": "object", "placeholder_token": "<rex>"},
        {"seed": concept_seed(0, "rex")},
        {"overrides": ["data.resolution=16"]},
        {"vectors_added_at": [], "norm_control": "none", "regularization_weight": 0.0},
        {"overrides": ["training.init_from=auto", "training.vectors_added_at=[]"]},  # the row names a word
    ],
)
def test_equal_meanings_have_equal_fingerprints(same: dict[str, Any]) -> None:
    assert digests(make(**same)) == digests(make())


@pytest.mark.parametrize(
    "other",
    [
        {"images": ROW["images"][::-1]},
        {"model_identity": "model-2"},
        {"resolution": 24},
        {"concept_id": "rex2"},  # which the seed is made from
        {"init_from": "vocabulary_mean"},
        {"overrides": ["training.vectors_added_at=[5]"]},
    ],
)
def test_what_no_setting_names_counts_too(other: dict[str, Any]) -> None:
    for changed, before in zip(digests(make(**other)), digests(make()), strict=True):
        assert changed != before


def test_the_row_fingerprint_needs_no_images(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png("red"))
    row = {**ROW, "images": ["1.png"]}
    concept = make(row, base=str(tmp_path))
    cheap = prepare.row_fingerprint(row, CONFIG, resolution=16, model_identity="model-1")
    assert cheap == concept.row_fingerprint
    embedded = prepare.row_fingerprint(ROW, CONFIG, resolution=16, model_identity="model-1")
    assert embedded == make().row_fingerprint


def test_the_same_images_elsewhere_are_the_same_concept(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png("red"))
    (tmp_path / "2.png").write_bytes(png("red"))
    one, two = (make({**ROW, "images": [name]}, base=str(tmp_path)) for name in ("1.png", "2.png"))
    assert one.fingerprint == two.fingerprint
    assert one.row_fingerprint != two.row_fingerprint
    (tmp_path / "2.png").write_bytes(png("blue"))
    assert make({**ROW, "images": ["2.png"]}, base=str(tmp_path)).fingerprint != one.fingerprint


def test_round_trip_through_bytes() -> None:
    concept = make(tags={"a": "ä"}, captions=["my {}"])
    again = Concept.from_bytes(concept.to_bytes())
    for name, value in vars(concept).items():
        if name == "images":
            assert (again.images == value).all()
            assert again.images.dtype == np.uint8
        else:
            assert getattr(again, name) == value
            assert type(getattr(again, name)) is type(value)


def test_credentials_stay_out_of_a_concept() -> None:
    with serve(lambda path: (200, png("red"))) as host:
        concept = make(images=[f"http://me:SECRET@{host}/1.png?sig=SECRET"])
    assert concept.image_uris == (f"http://{host}/1.png",)
    assert b"SECRET" not in concept.to_bytes()


# Variants


def test_variants_by_row_and_by_configuration() -> None:
    row: dict[str, Any] = {
        "vectors_added_at": [9, 4],
        "regularization_weight": 0.5,
        "norm_control": "rescale",
    }
    by_row = make(**row)
    assert (by_row.vectors_added_at, by_row.regularization_weight) == ((4, 9), 0.5)
    by_config = make(
        overrides=[
            "training.vectors_added_at=[4, 9]",
            "training.regularization_weight=0.5",
            "training.norm_control=rescale",
        ]
    )
    assert digests(by_row) == digests(by_config)
    assert make(vectors_added_at=[], overrides=["training.vectors_added_at=[4]"]).vectors_added_at == ()


def test_templates_of_the_configuration() -> None:
    overrides = ["training.templates=['my {}', 'a {}']"]
    assert make(overrides=overrides).templates == ("my {}", "a {}")
    assert make(overrides=overrides, templates=["the {}"]).templates == ("the {}",)


def numbered(count: int) -> list[dict[str, bytes]]:
    """Images that differ."""
    return [{"bytes": png((index, 0, 0))} for index in range(count)]


def levels(images: np.ndarray | None) -> list[int]:
    """The numbers of `numbered` images, of their first pixels."""
    assert images is not None
    return images[:, 0, 0, 0, 0].tolist()


@pytest.mark.parametrize("holdout", [1, 4, 6])
def test_images_are_held_out_by_the_seed(holdout: int) -> None:
    captions = [f"{index} {{}}" for index in range(5)]
    row = {**ROW, "images": numbered(7), "captions": captions, "seed": 3}
    whole, part = make(row), make(row, [f"data.holdout={holdout}"])
    assert whole.heldout is None
    assert whole.reference_images is whole.images
    learned, held = levels(part.images), levels(part.heldout)
    assert sorted(learned + held) == list(range(7))
    assert (learned, held) == (sorted(learned), sorted(held))
    assert len(held) == holdout
    assert part.captions == tuple(captions[index] for index in learned if index < 5), (
        "each image keeps its own"
    )
    assert part.image_uris == tuple(whole.image_uris[index] for index in learned)
    assert len(part.crops) == len(learned)
    assert levels(part.reference_images) == held
    assert levels(make(row, [f"data.holdout={holdout}"]).heldout) == held
    others = {
        tuple(levels(make({**row, "seed": seed}, [f"data.holdout={holdout}"]).heldout)) for seed in range(9)
    }
    assert len(others) > 1
    again = Concept.from_bytes(part.to_bytes())
    assert (levels(again.images), levels(again.heldout)) == (learned, held)


@pytest.mark.parametrize("holdout", [3, 4])
def test_an_image_must_be_left_to_learn_from(holdout: int) -> None:
    with pytest.raises(ValueError, match=rf"data.holdout={holdout} leaves no image to learn from: rex has 3"):
        make({**ROW, "images": numbered(3)}, [f"data.holdout={holdout}"])
