"""The ways to learn that mini-sdxl is compared by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.support import tiny
from textinv_ray.inversion import words
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from training.evaluate_sdxl import PooledAtLargestId, changed


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> StableDiffusionXL:
    return tiny.load_sdxl(tiny_sdxl)


@torch.no_grad()
def test_pooled_as_a_pipeline_does_whose_tokenizer_has_the_word(
    sdxl: StableDiffusionXL, tiny_sdxl: Path
) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    vectors = torch.randn(2, sdxl.embedding_dim, generator=torch.Generator().manual_seed(0)) * 0.1
    for encoder, model, tokenizer in zip(
        sdxl.encoders,
        (pipeline.text_encoder, pipeline.text_encoder_2),
        (pipeline.tokenizer, pipeline.tokenizer_2),
        strict=True,
    ):
        part = vectors[:, encoder.columns]
        pipeline.load_textual_inversion(part, token="<x>", text_encoder=model, tokenizer=tokenizer)
    prompts = ["a photo of <x>", "<x> on the beach", "a cat"]
    expected, _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    condition = changed(sdxl, PooledAtLargestId).encode(words.tokenize(sdxl, prompts, {"<x>": 2}), vectors)
    torch.testing.assert_close(condition.hidden_states, expected)
    torch.testing.assert_close(condition.pooled, pooled)
    right = sdxl.encode(words.tokenize(sdxl, prompts, {"<x>": 2}), vectors).pooled
    assert right is not None
    assert not torch.allclose(right[:2], pooled[:2], atol=1e-3)
    torch.testing.assert_close(right[2], pooled[2])
