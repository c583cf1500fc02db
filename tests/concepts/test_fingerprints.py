"""Fingerprints: what they depend on, and that old results keep theirs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.fields import column_values, image, leaves, setting_values, value_of, with_value, words
from textinv_ray.concepts import prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import INIT_FROM
from textinv_ray.manifest.columns import COLUMNS, Column, plain_row
from textinv_ray.util.errors import UserError

RED = b"P6 2 2 255\n" + bytes((200, 30, 40)) * 4
BLUE = b"P6 2 2 255\n" + bytes((10, 20, 250)) * 4
IMAGES: list[Any] = [{"bytes": RED, "path": "1.ppm"}, {"bytes": BLUE, "path": None}]
MODEL: dict[str, Any] = {"resolution": 16, "model_identity": "model-1"}

ROWS: dict[str, dict[str, Any]] = {
    "plain": {"concept_id": "rex", "images": IMAGES, "initializer_token": "dog"},
    "minimal": {"concept_id": "minka", "images": IMAGES[:1]},
    "full": {
        "concept_id": "f",
        "images": IMAGES,
        "placeholder_token": "<full>",
        "initializer_token": "cat toy",
        "learnable_property": "style",
        "num_vectors": 2,
        "steps": 700,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "seed": 11,
        "templates": ["a <full>", "the {}"],
        "captions": ["my {}"],
        "prompts": ["{} at night"],
        "tags": {"team": "a"},
        "vectors_added_at": [9, 4],
        "regularization_weight": 0.5,
        "per_image_probability": 0.25,
        "norm_control": "regularize",
        "norm_weight": 0.5,
    },
    "auto": {"concept_id": "a", "images": IMAGES, "init_from": "auto", "norm_control": "rescale"},
    "word": {"concept_id": "w", "images": ["1.ppm", "2.ppm"], "init_from": "word.safetensors"},
}
CONFIGS = {
    "defaults": [],
    "training": [
        "training.lr_schedule=cosine",
        "training.lr_warmup_steps=5",
        "training.max_grad_norm=1.0",
        "training.templates=['my {}']",
        "training.vectors_added_at=[7]",
        "training.norm_weight=0.2",
        "training.steps=500",
    ],
    "data": [
        "data.crop=random",
        "data.crops_per_image=2",
        "data.resolution=24",
        "data.flip_probability=0",
        "model.dtype=bfloat16",
    ],
    "dvar": ["stopping.rule=dvar", "stopping.dvar.threshold=0.2"],
    "clip": [
        "stopping.rule=clip",
        "stopping.min_steps=7",
        "review.images_per_prompt=1",
        "scoring.num_images=2",
    ],
    "elsewhere": [
        "service.workers=3",
        "pack.size=2",
        "model.path=other",
        "tracking.enabled=false",
        "data.download_retry_s=0",
    ],
}
DIGESTS = {
    "plain defaults": "4f955f941eb2d756 4f955f941eb2d756 3223c9433584b0a8",
    "minimal defaults": "3d4accd54a0a3f08 3d4accd54a0a3f08 9fe6a48ed566cc44",
    "full defaults": "6604c7a413f9adc4 6604c7a413f9adc4 e32fefadf7d33ce7",
    "auto defaults": "29c380f1927c93ab 29c380f1927c93ab a67e306e1658ba0c",
    "word defaults": "9546ace946ef4893 b11000edc9a45c2c da18aee940cdda29",
    "plain training": "2464a683bc4b0acc 2464a683bc4b0acc 990c162be4ad9e90",
    "minimal training": "20fa2d82803d6613 20fa2d82803d6613 5d1e186bde824e98",
    "full training": "95105e437e763bba 95105e437e763bba ece70a3d4fa239ed",
    "auto training": "1a7c56e59208b8f5 1a7c56e59208b8f5 7899d12f61e3382a",
    "word training": "3b805619fe197e64 f40c1e14d6b256ed 073274eba9686ca5",
    "plain data": "3daaf235199b1f19 3daaf235199b1f19 25efd96b279b8c65",
    "minimal data": "3010485f5a5f1f15 3010485f5a5f1f15 fd009d897cdeecfe",
    "full data": "efa05a0dcdf5e966 efa05a0dcdf5e966 dc5afc17413b9199",
    "auto data": "0870b46f1541bd09 0870b46f1541bd09 a9022359a9d5cd7c",
    "word data": "9932833118a26df5 66427e39a83d53cb ae1d6cf86a9b1931",
    "plain dvar": "1bdb4ccc6c67f6ef 1bdb4ccc6c67f6ef 3223c9433584b0a8",
    "minimal dvar": "e98ec328299911db e98ec328299911db 9fe6a48ed566cc44",
    "full dvar": "1dbb01e3ebc3e30b 1dbb01e3ebc3e30b e32fefadf7d33ce7",
    "auto dvar": "e910af21ae7d30a9 e910af21ae7d30a9 a67e306e1658ba0c",
    "word dvar": "0c485f5bbecd27dc b3eee55fa3686948 da18aee940cdda29",
    "plain clip": "a6d951c0ec6a5eb4 a6d951c0ec6a5eb4 3223c9433584b0a8",
    "minimal clip": "b22b2b34f36ba817 b22b2b34f36ba817 9fe6a48ed566cc44",
    "full clip": "702ee605220d3fb2 702ee605220d3fb2 e32fefadf7d33ce7",
    "auto clip": "fa37099ce0b9a4a8 fa37099ce0b9a4a8 a67e306e1658ba0c",
    "word clip": "6b1e168b5a26231c 3a96a52c038152ae da18aee940cdda29",
    "plain elsewhere": "4f955f941eb2d756 4f955f941eb2d756 3223c9433584b0a8",
    "minimal elsewhere": "3d4accd54a0a3f08 3d4accd54a0a3f08 9fe6a48ed566cc44",
    "full elsewhere": "6604c7a413f9adc4 6604c7a413f9adc4 e32fefadf7d33ce7",
    "auto elsewhere": "29c380f1927c93ab 29c380f1927c93ab a67e306e1658ba0c",
    "word elsewhere": "9546ace946ef4893 b11000edc9a45c2c da18aee940cdda29",
}
"""The first 16 digits of fingerprint, row_fingerprint and state_fingerprint, by row and configuration."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest's folder with two images and a learned word."""
    (tmp_path / "1.ppm").write_bytes(RED)
    (tmp_path / "2.ppm").write_bytes(BLUE)
    word = {"<a>": np.arange(8, dtype=np.float32).reshape(2, 4)}
    (tmp_path / "word.safetensors").write_bytes(safetensors.numpy.save(word))
    return tmp_path


@pytest.mark.parametrize("case", DIGESTS)
def test_existing_results_keep_their_fingerprints(folder: Path, case: str) -> None:
    """A change of a digest makes every finished concept run again. It needs a reason, such as a new default, and a
    higher FINGERPRINT_VERSION if results change."""
    row, config = case.split()
    job = JobConfig().override(["training.initializer_token=character", *CONFIGS[config]])
    concept = prepare.make(ROWS[row], job, base=str(folder), **MODEL)
    digests = concept.fingerprint, concept.row_fingerprint, concept.state_fingerprint
    assert " ".join(digest[:16] for digest in digests) == DIGESTS[case]
    assert prepare.row_fingerprint(ROWS[row], job, **MODEL) == concept.row_fingerprint


# What they depend on

NOTHING, RESULT, LEARNING = "nothing", "the result", "the course of learning"
"""Which fingerprints an input is part of: none; fingerprint and row_fingerprint; state_fingerprint as well."""
Effects = dict[str, str | dict[tuple[str, ...], str]]

FOLDER = tempfile.TemporaryDirectory()
"""Of the manifest, with a learned word."""
Path(FOLDER.name, "word.safetensors").write_bytes(
    safetensors.numpy.save({"<a>": np.ones((1, 4), np.float32)})
)
WARM = ("training.init_from=word.safetensors",)
ELSEWHERE = ("pack", "service", "tracking")
"""Sections that say where, how fast and how visibly a concept is learned. None of their fields changes a result."""
SETTINGS: Effects = {
    "model.path": NOTHING,  # the model's identity counts in place of path, config, revision and variant
    "model.config": NOTHING,
    "model.prediction_type": LEARNING,
    "model.revision": NOTHING,
    "model.variant": NOTHING,
    "model.dtype": LEARNING,
    "model.vae_dtype": LEARNING,
    "model.device": NOTHING,
    "data.resolution": LEARNING,
    "data.fit": LEARNING,
    "data.crop": LEARNING,
    "data.crops_per_image": LEARNING,
    "data.alpha_masks": LEARNING,
    "data.flip_probability": LEARNING,
    "data.holdout": LEARNING,
    "data.allowed_protocols": NOTHING,
    "data.max_image_pixels": NOTHING,
    "data.refuse_private_addresses": NOTHING,
    "data.download_timeout_s": NOTHING,
    "data.download_retry_s": NOTHING,
    "training.steps": {
        (): RESULT,
        ("training.lr_schedule=cosine",): LEARNING,
        ("training.learnable_property=style", "training.style.lr_schedule=cosine"): LEARNING,
        (
            "training.learnable_property=style",
            "training.lr_schedule=cosine",
            "training.style.lr_schedule=constant",
        ): RESULT,
    },
    "training.batch_size": LEARNING,
    **{
        f"training.{name}": {
            (): LEARNING,
            ("training.learnable_property=style", f"training.style.{name}={own}"): NOTHING,
            (f"training.style.{name}={own}",): LEARNING,
        }
        for name, own in (("learning_rate", "0.3"), ("lr_schedule", "cosine"), ("optimizer", "directional"))
    },
    "training.lr_warmup_steps": LEARNING,
    "training.adam_beta1": LEARNING,
    "training.adam_beta2": LEARNING,
    "training.adam_epsilon": LEARNING,
    "training.max_grad_norm": LEARNING,
    "training.num_vectors": LEARNING,
    "training.seed": LEARNING,
    "training.max_nonfinite_steps": LEARNING,
    "training.learnable_property": LEARNING,  # it selects the templates
    "training.initializer_token": {(): LEARNING, ("training.init_from=auto",): NOTHING},
    "training.init_from": LEARNING,
    "training.initializer_candidates.object": {(): NOTHING, ("training.init_from=auto",): LEARNING},
    "training.initializer_candidates.style": {
        ("training.init_from=auto",): NOTHING,
        ("training.init_from=auto", "training.learnable_property=style"): LEARNING,
    },
    "training.warm_start.steps": {(): NOTHING, WARM: RESULT},
    "training.warm_start.learning_rate_scale": {(): NOTHING, WARM: LEARNING},
    "training.warm_start.min_steps": {(): NOTHING, WARM: NOTHING, (*WARM, "stopping.rule=clip"): RESULT},
    **{
        f"training.style.{name}": {
            (): NOTHING,
            ("training.learnable_property=style",): LEARNING,
            ("training.learnable_property=style", *WARM): NOTHING,
        }
        for name in ("optimizer", "learning_rate", "lr_schedule")
    },
    "training.vectors_added_at": LEARNING,
    "training.regularization_weight": LEARNING,
    "training.per_image_probability": LEARNING,
    "training.norm_control": LEARNING,
    "training.norm_weight": LEARNING,
    "training.direction_prior": LEARNING,
    "training.context_weight": LEARNING,
    "training.context_every": {(): NOTHING, ("training.context_weight=0.1",): LEARNING},
    "training.context_prompts.object": {(): NOTHING, ("training.context_weight=0.1",): LEARNING},
    "training.context_prompts.style": {
        ("training.context_weight=0.1",): NOTHING,
        ("training.context_weight=0.1", "training.learnable_property=style"): LEARNING,
    },
    "training.timesteps.distribution": LEARNING,
    "training.timesteps.logit_mean": LEARNING,
    "training.timesteps.logit_std": LEARNING,
    "training.timesteps.mode_scale": LEARNING,
    "training.timesteps.shift": LEARNING,
    "training.timesteps.min": LEARNING,
    "training.timesteps.max": LEARNING,
    "training.unmasked_weight": LEARNING,
    "training.noise_offset": LEARNING,
    "training.caption_dropout": LEARNING,
    "training.loss_weight": LEARNING,
    "training.min_snr_gamma": LEARNING,
    "training.encoders": LEARNING,
    "training.encoder_rates": LEARNING,
    "training.templates": LEARNING,
    "stopping.rule": RESULT,
    "stopping.min_steps": {(): NOTHING, ("stopping.rule=dvar",): RESULT, ("stopping.rule=clip",): RESULT},
    **{
        f"stopping.dvar.{name}": {("stopping.rule=clip",): NOTHING, ("stopping.rule=dvar",): RESULT}
        for name in ("every", "batch_size", "window", "threshold")
    },
    **{
        f"stopping.clip.{name}": {("stopping.rule=dvar",): NOTHING, ("stopping.rule=clip",): RESULT}
        for name in ("every", "num_images", "num_inference_steps", "patience")
    },
    "review.prompts.object": {(): RESULT, ("training.learnable_property=style",): NOTHING},
    "review.prompts.style": {(): NOTHING, ("training.learnable_property=style",): RESULT},
    "scoring.judge": RESULT,
    "review.resolution": RESULT,
    "review.images_per_prompt": RESULT,
    "review.sampler": RESULT,
    "review.num_inference_steps": RESULT,
    "review.guidance_scale": RESULT,
    "review.sample_at": RESULT,
    "scoring.model": RESULT,
    "scoring.image_prompt.object": RESULT,
    "scoring.image_prompt.style": RESULT,  # of objects, too: the pair counts as a whole
    "scoring.edit_prompts.object": {(): RESULT, ("training.learnable_property=style",): NOTHING},
    "scoring.edit_prompts.style": {(): NOTHING, ("training.learnable_property=style",): RESULT},
    "scoring.num_images": RESULT,
    "scoring.evaluate_at": RESULT,
}
"""What each field of the configuration is part of, for a row that has no column of its own; some by overrides."""
FIELDS = dict(leaves())
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "data.resolution": st.sampled_from([8, 24, 32]),  # the model's own is 16
    "data.max_image_pixels": st.integers(100, 10**8),
    "data.holdout": st.integers(0, 1),  # fewer than the row has images
    "training.init_from": st.sampled_from(INIT_FROM),
    # The others are what training has
    "training.style.optimizer": st.sampled_from([None, "directional"]),
    "training.style.lr_schedule": st.sampled_from([None, "linear", "cosine"]),
    "review.resolution": st.sampled_from([None, 8, 16, 512]),  # a multiple of 8
    "service.heartbeat_s": st.floats(0.1, 10),  # at most half of lease_timeout_s
    "service.label_selector": st.dictionaries(words, words, max_size=2),
    "service.fallback_label_selectors": st.lists(st.dictionaries(words, words, max_size=2), max_size=2),
}
"""Values in place of those that a field's type allows: what needs no files, large images or other fields."""
CONFIG = JobConfig().override(
    # Fallbacks need a selector that is tried first
    ["training.initializer_token=character", "service.label_selector={zone: a}"]
)
FULL = {
    **ROWS["full"],
    "templates": ["a {}"],  # none that says the placeholder itself
    # Later than the digests that are written down
    "optimizer": "directional",
    "direction_prior": 0.5,
    "masks": [image(9), None],
    "context_weight": 0.0,  # else learnable_property chooses prompts of learning
}


def made(row: dict[str, Any], config: JobConfig) -> Concept:
    return prepare.make(row, config, base=FOLDER.name, **MODEL)


def changed(one: Concept, other: Concept) -> str:
    """Which of their fingerprints differ."""
    parts = tuple(
        getattr(one, name) != getattr(other, name)
        for name in ("fingerprint", "row_fingerprint", "state_fingerprint")
    )
    return {(False, False, False): NOTHING, (True, True, False): RESULT, (True, True, True): LEARNING}[parts]


def test_every_setting_says_what_it_changes() -> None:
    assert {name for name in FIELDS if name.split(".")[0] not in ELSEWHERE} == set(SETTINGS)


@pytest.mark.parametrize("name", FIELDS)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_settings_change_the_fingerprints_of_what_they_change(name: str, data: st.DataObject) -> None:
    effect = SETTINGS.get(name, NOTHING)
    overrides, expected = data.draw(
        st.sampled_from(list(effect.items() if isinstance(effect, dict) else [((), effect)]))
    )
    values = VALUES.get(name, setting_values(FIELDS[name]))
    try:
        configs = [with_value(CONFIG.override(overrides), name, data.draw(values)) for _ in range(2)]
    except UserError:  # of two fields that must fit each other
        assume(False)
    assume(value_of(configs[0], name) != value_of(configs[1], name))
    row = {**ROWS["minimal"], "images": IMAGES} if name == "data.holdout" else ROWS["minimal"]
    assert changed(*(made(row, config) for config in configs)) == expected


@pytest.mark.parametrize("column", COLUMNS.values(), ids=list(COLUMNS))
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_columns_change_the_fingerprints_of_what_reads_them(column: Column, data: st.DataObject) -> None:
    """In a row that names all others, so that none of their defaults changes as well."""
    expected = {"learning": LEARNING, "review": RESULT, "labels": NOTHING}[column.read_by]
    values = st.sampled_from(INIT_FROM) if column.name == "init_from" else column_values(column)
    rows = [{**FULL, column.name: data.draw(values)} for _ in range(2)]
    if column.name in ("images", "masks"):
        rows = [{**row, "masks": (row["masks"] * 2)[: len(row["images"])]} for row in rows]
    assume(plain_row(rows[0]) != plain_row(rows[1]))
    config = CONFIG.override(["training.lr_schedule=cosine"])
    assert changed(*(made(row, config) for row in rows)) == expected
    if column.name == "steps":  # with a constant learning rate, a checkpoint may be continued to more steps
        assert changed(*(made(row, CONFIG) for row in rows)) == RESULT


def test_the_row_that_names_all_columns_does() -> None:
    assert set(FULL) == set(COLUMNS) - {"init_from"}  # which is in place of initializer_token


@pytest.mark.parametrize("name", [name for name, column in COLUMNS.items() if column.overrides])
def test_a_default_counts_as_if_the_row_had_given_it(name: str) -> None:
    concept = made(ROWS["minimal"], CONFIG)
    value = getattr(concept, name)
    row = {**ROWS["minimal"], name: list(value) if isinstance(value, tuple) else value or None}
    assert changed(made(row, CONFIG), concept) == NOTHING
