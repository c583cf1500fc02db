"""What the learning of a concept starts from: words of the vocabulary, other concepts' words, predictors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.support import web
from tests.support.catalogue import examples
from tests.support.prepared import CONFIG, ROW, make
from textinv_ray.concepts import predictor, prepare, word_files
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError


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


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            "none.safetensors",
            ".*/none.safetensors: doesn't exist; relative paths count from the manifest's folder",
        ),
        ("/none/at/all.safetensors", "/none/at/all.safetensors: doesn't exist"),
        ("torn.safetensors", "[^;]*torn.safetensors[^;]*"),
        ("gopher://host/x.safetensors", "gopher://host/x.safetensors: .*gopher.*"),
    ],
)
def test_a_start_in_the_configuration_that_cannot_be_read_stops_the_job(
    tmp_path: Path, start: str, message: str
) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    config = JobConfig.load("mini", [f"training.init_from={start}"])
    with pytest.raises(UserError, match=rf"^training\.init_from {message}$"):
        prepare.check_start_readable(config, base=str(tmp_path))


@pytest.mark.parametrize("status", [500, 503])
def test_a_start_that_may_be_read_later_is_left_to_the_concepts(tmp_path: Path, status: int) -> None:
    with web.serve(lambda _: (status, b"")) as url:
        config = JobConfig.load("mini", [f"training.init_from=http://{url}/x.safetensors"])
        prepare.check_start_readable(config, base=str(tmp_path))
