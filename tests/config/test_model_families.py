from __future__ import annotations

import pytest

from textinv_ray.config.job import JobConfig
from textinv_ray.config.model_families import (
    FAMILIES,
    FLUX,
    SANA,
    STABLE_DIFFUSION_3,
    ModelFamily,
    family_of,
)
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_known_by_its_pipelines(family: ModelFamily) -> None:
    for name in family.pipelines:
        assert family_of({"_class_name": name, "_diffusers_version": "0.1"}, "a model") is family


def test_every_pipeline_is_of_one_family() -> None:
    names = [name for family in FAMILIES for name in family.pipelines]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_parts_of_a_pipeline(family: ModelFamily) -> None:
    """Each is a folder of its own, and every text encoder has its tokenizer."""
    assert len(set(family.parts)) == len(family.parts)
    assert {family.denoiser, "vae", "scheduler", *family.text_encoders, *family.tokenizers} == set(
        family.parts
    )
    assert len(family.text_encoders) == len(family.tokenizers)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "'m' is a StableDiffusionInpaintPipeline; "),
        ({"_class_name": ["StableDiffusionPipeline"]}, "'m' has no _class_name"),
        ({"_class_name": None}, "'m' has no _class_name"),
        ({}, "'m' has no _class_name"),
        (["StableDiffusionPipeline"], "'m' has no _class_name"),
        (None, "'m' has no _class_name"),
    ],
)
def test_other_pipelines_are_refused_with_the_known_families(index: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        family_of(index, "m")
    for family in FAMILIES:
        assert family.name in str(caught.value)
        assert all(name in str(caught.value) for name in family.pipelines)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_settings_that_fit_a_family(family: ModelFamily) -> None:
    for encoder in family.encoders:
        family.check(
            JobConfig().override([f"training.encoders=[{encoder}]", f"review.sampler={family.samplers[0]}"])
        )
    family.check_side(None, "size")
    family.check_side(4 * family.side_multiple, "size")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "review.sampler=ddim",
            r"review\.sampler: Stable Diffusion 3 .* 'ddim'; set it to euler or dpmsolver\+\+",
        ),
        (
            "model.prediction_type=epsilon",
            r"model\.prediction_type: Stable Diffusion 3 .* learns a flow",
        ),
        (
            "training.loss_weight=min_snr",
            r"training\.loss_weight: 'min_snr' is for models that predict epsilon or v",
        ),
        ("training.encoders=[clip_l, gemma]", r"no gemma \(its text encoders: clip_l, clip_g, t5xxl\)"),
        ("data.resolution=24", r"data\.resolution: .* sides of a multiple of 16, not 24"),
        ("review.resolution=24", r"review\.resolution: .* sides of a multiple of 16, not 24"),
    ],
)
def test_settings_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        STABLE_DIFFUSION_3.check(JobConfig().override([override]))


def test_context_regularisation_needs_an_encoder_that_it_acts_on() -> None:
    config = JobConfig().override(["training.context_weight=1e-3", "review.sampler=euler"])
    message = r"training\.context_weight: .* CLIP and T5 \(of Sana: none\); set it to 0"
    with pytest.raises(UserError, match=message):
        SANA.check(config)
    FLUX.check(config)
    with pytest.raises(UserError, match=r"of Flux\.1: t5xxl"):
        FLUX.check(config.override(["training.encoders=[clip_l]"]))


def test_a_part_that_a_pipeline_was_saved_without() -> None:
    index = {part: ["library", "Class"] for part in STABLE_DIFFUSION_3.parts}
    assert STABLE_DIFFUSION_3.parts_of(index) == STABLE_DIFFUSION_3.parts
    index["tokenizer_3"] = [None, None]  # type: ignore[list-item]
    del index["text_encoder_3"]
    assert set(STABLE_DIFFUSION_3.parts) - set(STABLE_DIFFUSION_3.parts_of(index)) == {
        "text_encoder_3",
        "tokenizer_3",
    }
