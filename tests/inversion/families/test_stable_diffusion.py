from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from tests.support import tiny
from textinv_ray.inversion import words
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_words_are_encoded_as_a_plain_pipeline_does(
    backbone: StableDiffusion, tiny_sd: Path, num_vectors: int
) -> None:
    vectors = torch.randn(num_vectors, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipeline.load_textual_inversion({"<x>": vectors})
    prompts = ["a photo of <x>", "<x> and <x>, my <x>!", "no word"]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    ids = words.tokenize(backbone, prompts, {"<x>": num_vectors})
    condition = backbone.encode(ids, vectors)
    assert torch.equal(condition.hidden_states, expected)
    assert (condition.pooled, condition.time_ids) == (None, None)
    assert torch.equal(
        backbone.encode(ids, vectors, torch.zeros(3, 6, dtype=torch.int64)).hidden_states, expected
    )


def test_guidance_without_a_negative_prompt_takes_the_empty_one(
    backbone: StableDiffusion, tiny_sd: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    _, expected = pipeline.encode_prompt(["a cat"] * 3, "cpu", 1, True)
    assert torch.equal(backbone.unconditional(3).hidden_states, expected)


@pytest.mark.parametrize(("dim", "name"), [(32, "clip_l"), (1024, "clip_h")])
def test_the_encoder_is_named_by_its_size(backbone: StableDiffusion, dim: int, name: str) -> None:
    """1.x has CLIP ViT-L's text encoder, 2.x that of OpenCLIP ViT-H."""
    text_encoder = CLIPTextModel(tiny.text_config(backbone.tokenizer, dim))
    made = StableDiffusion(backbone.tokenizer, text_encoder, backbone.unet, backbone.vae, backbone.scheduler)
    assert [encoder.name for encoder in made.encoders] == [name]
    assert made.embedding_dim == dim


@pytest.mark.parametrize("change", [{"in_channels": 9}, {"addition_embed_type": "text_time"}])
def test_other_unets_are_refused(tiny_sd: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """An inpainting model's, and one of another family."""
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    config = folder / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match="is no text-to-image model of Stable Diffusion"):
        load_backbone(str(folder))
