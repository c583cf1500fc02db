"""Concepts: defaults, where learning starts, and fingerprints of equal meanings (the rest: test_fingerprints.py)."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.catalogue import examples
from tests.support.web import serve
from textinv_ray.concepts import predictor, prepare, templates, word_files
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.concepts.settings import concept_seed
from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError

CONFIG = JobConfig.load("mini")


def png(color: str | tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (20, 30), color).save(buffer, "PNG")
    return buffer.getvalue()


ROW: dict[str, Any] = {
    "concept_id": "rex",
    "images": [{"bytes": png("red"), "path": "1.png"}, {"bytes": png("blue"), "path": None}],
    "initializer_token": "dog",
}


def make(row: dict[str, Any] | None = None, overrides: list[str] | None = None, **changes: Any) -> Concept:
    options: dict[str, Any] = {"base": "/", "resolution": 16, "model_identity": "model-1"}
    config = JobConfig.load("mini", overrides or [])
    extra = {name: changes.pop(name) for name in list(changes) if name in options}
    return prepare.make({**(row or ROW), **changes}, config, **{**options, **extra})


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


@pytest.mark.parametrize(
    ("row", "overrides", "expected"),
    [
        ({}, [], ("", "dog")),
        ({}, ["training.init_from=auto"], ("", "dog")),
        ({"init_from": "auto"}, [], ("auto", "")),
        ({"initializer_token": None}, ["training.init_from=auto"], ("auto", "")),
        ({"initializer_token": None}, [], ("", "character")),
        ({"init_from": "vocabulary_mean"}, ["training.init_from=auto"], ("vocabulary_mean", "")),
    ],
)
def test_where_learning_starts(row: dict[str, Any], overrides: list[str], expected: tuple[str, str]) -> None:
    """What is nearest to the concept: its row before the configuration."""
    concept = make(row={**ROW, **row}, overrides=overrides)
    assert (concept.init_from, concept.initializer_token) == expected
    assert bool(concept.initializer_candidates) == (expected[0] == "auto")


def word_file(folder: Path, name: str, vectors: np.ndarray) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(safetensors.numpy.save({"<a>": vectors}))
    return name


def test_another_concepts_word(tmp_path: Path) -> None:
    """Relative to the manifest; as many vectors as it has, unless the row says; known by its content."""
    vectors = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    name = word_file(tmp_path, "a/learned_embeds.safetensors", vectors)
    concept = make(init_from=name, base=str(tmp_path), overrides=["training.num_vectors=5"])
    assert concept.initial_vectors == {"clip_l": tuple(map(tuple, vectors.tolist()))}
    assert (concept.init_from, concept.initializer_token, concept.num_vectors) == (name, "", 2)
    assert make(init_from=name, base=str(tmp_path), num_vectors=3).num_vectors == 3
    again = Concept.from_bytes(concept.to_bytes())
    assert again.initial_vectors == concept.initial_vectors
    cheap = prepare.row_fingerprint(
        {**ROW, "init_from": name}, JobConfig.load("mini"), resolution=16, model_identity="model-1"
    )
    assert cheap == make(init_from=name, base=str(tmp_path)).row_fingerprint

    warm = [
        "training.warm_start={steps: 7, learning_rate_scale: 0.2, min_steps: 0}",
        "stopping.rule=clip",
        "training.learning_rate=0.01",
    ]
    concept = make(init_from=name, base=str(tmp_path), overrides=warm)
    assert (concept.steps, concept.min_steps) == (7, 0)
    assert concept.learning_rate == pytest.approx(0.002)
    own = make(init_from=name, base=str(tmp_path), overrides=warm, steps=5, learning_rate=0.5)
    assert (own.steps, own.learning_rate) == (5, 0.5), "the row's own values come first"
    cold = make(overrides=warm)
    assert (cold.learning_rate, cold.min_steps) == (0.01, None)
    assert cold.fingerprint == make(overrides=warm[1:]).fingerprint

    copied = word_file(tmp_path, "b.safetensors", vectors)
    assert (
        make(init_from=copied, base=str(tmp_path)).fingerprint
        == make(init_from=name, base=str(tmp_path)).fingerprint
    )
    before = make(init_from=copied, base=str(tmp_path))
    word_file(tmp_path, "b.safetensors", vectors + 1)
    after = make(init_from=copied, base=str(tmp_path))
    assert after.fingerprint != before.fingerprint
    assert after.state_fingerprint != before.state_fingerprint


def test_another_concepts_word_for_two_encoders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    word = {
        name: rng.normal(size=(2, dim)).astype(np.float32) for name, dim in (("clip_l", 3), ("clip_g", 5))
    }
    (tmp_path / "a.safetensors").write_bytes(word_files.store_word("<a>", word))
    concept = make(init_from="a.safetensors", base=str(tmp_path))
    assert concept.num_vectors == 2
    assert concept.initial_vectors == {name: tuple(map(tuple, v.tolist())) for name, v in word.items()}
    assert Concept.from_bytes(concept.to_bytes()).initial_vectors == concept.initial_vectors
    word["clip_g"] += 1
    (tmp_path / "a.safetensors").write_bytes(word_files.store_word("<a>", word))
    assert make(init_from="a.safetensors", base=str(tmp_path)).fingerprint != concept.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "init_from .*/x.safetensors: doesn't exist"),
        (b"rubbish" * 9, "init_from x.safetensors: 'x.safetensors' is not a safetensors file"),
        (
            safetensors.numpy.save({"a": np.ones(3), "b": np.ones((1, 3))}),
            r"init_from x.safetensors: expected one word, found a, b",
        ),
        (safetensors.numpy.save({"a": np.full((1, 3), np.nan)}), "init_from .* values that are not finite"),
        (safetensors.numpy.save({"a": np.ones((1, 2, 3))}), r"init_from .* 'a' is \(1, 2, 3\)"),
    ],
)
def test_words_that_nothing_can_start_from(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make(init_from="x.safetensors", base=str(tmp_path))


@pytest.mark.parametrize("given", [None, 1, 2])
def test_a_predictor(tmp_path: Path, given: int | None) -> None:
    """The concept gets the maps for its number of vectors. The file counts by their content."""
    catalogue = examples(12, 1, scorer=CONFIG.scoring.model) + examples(
        12, 2, scorer=CONFIG.scoring.model, first=20
    )
    (tmp_path / "p.safetensors").write_bytes(predictor.fit(catalogue).to_bytes())
    row: dict[str, Any] = {} if given is None else {"num_vectors": given}
    concept = make(init_from="p.safetensors", base=str(tmp_path), **row)
    assert (concept.init_from, concept.initializer_token) == ("p.safetensors", "")
    assert (concept.num_vectors, concept.initial_vectors) == (given or 1, {})
    again = Concept.from_bytes(concept.to_bytes())
    assert again.predictor is not None
    assert predictor.Predictor.from_bytes(again.predictor.tobytes()).counts == (given or 1,)
    (tmp_path / "q.safetensors").write_bytes(predictor.fit(catalogue).to_bytes())
    assert make(init_from="q.safetensors", base=str(tmp_path), **row).fingerprint == concept.fingerprint
    (tmp_path / "q.safetensors").write_bytes(predictor.fit(catalogue[1:-1]).to_bytes())
    after = make(init_from="q.safetensors", base=str(tmp_path), **row)
    assert after.fingerprint != concept.fingerprint
    assert after.state_fingerprint != concept.state_fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_identity": "model-2"}, "init_from p.safetensors: .* words of another model"),
        ({"overrides": ["scoring.model=other"]}, "init_from p.safetensors: .* 'mini-clip', .* is 'other'"),
        ({"num_vectors": 3}, r"init_from p.safetensors: .* no words of 3 vectors \(it has: 1\)"),
    ],
)
def test_a_predictor_of_something_else(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    made = predictor.fit(examples(12, scorer=CONFIG.scoring.model))
    (tmp_path / "p.safetensors").write_bytes(made.to_bytes())
    with pytest.raises(ValueError, match=message):
        make(init_from="p.safetensors", base=str(tmp_path), **options)


def test_a_predictor_in_the_configuration_is_checked_before_anything_starts(tmp_path: Path) -> None:
    made = predictor.fit(examples(12, scorer=CONFIG.scoring.model))
    (tmp_path / "p.safetensors").write_bytes(made.to_bytes())
    word_file(tmp_path, "w.safetensors", np.ones((1, 4)))
    base = str(tmp_path)
    for start in ("p.safetensors", "w.safetensors", "none.safetensors", "auto"):
        config = JobConfig.load("mini", [f"training.init_from={start}", "training.num_vectors=2"])
        prepare.check_start(config, base=base, model_identity="model-1")
    config = JobConfig.load("mini", ["training.init_from=p.safetensors"])
    with pytest.raises(
        UserError, match=r"training\.init_from p\.safetensors: .* words of another model"
    ) as caught:
        prepare.check_start(config, base=base, model_identity="model-2")
    assert "\n" not in str(caught.value)
    config = config.override(["scoring.model=other"])
    with pytest.raises(UserError, match=r"training\.init_from p\.safetensors: .* scoring\.model is 'other'"):
        prepare.check_start(config, base=base, model_identity="model-1")


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
