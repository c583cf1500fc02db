from __future__ import annotations

import pytest

from textinv_ray.config.model_families import FAMILIES, ModelFamily, family_of
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
