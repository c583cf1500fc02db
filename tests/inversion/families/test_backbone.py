from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.support import tiny
from tests.support.learning import digest
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion


@pytest.fixture
def own(tiny_sd: Path) -> StableDiffusion:
    """A backbone that the test may change."""
    return tiny.load_sd(tiny_sd)


def test_the_vae_rests_on_the_host_where_memory_is_short(
    own: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is where activations are checkpointed. It is on the device while images are encoded and pictures made."""
    moves: list[str] = []

    def to(device: object) -> AutoencoderKL:
        moves.append(str(device))
        return own.vae  # this machine has no other device

    monkeypatch.setattr(own.vae, "to", to)
    monkeypatch.setattr(StableDiffusion, "device", "device of the model")
    own.latent_moments(np.zeros((1, 16, 16, 3), np.uint8))
    assert moves == ["device of the model"]
    own.checkpoint_activations()
    own.latent_moments(np.zeros((1, 16, 16, 3), np.uint8))
    assert moves[1:] == ["device of the model", "cpu"]


def test_everything_is_frozen(backbone: StableDiffusion) -> None:
    trained = (
        copy.deepcopy(backbone.text_encoder),
        copy.deepcopy(backbone.unet),
        copy.deepcopy(backbone.vae),
    )
    for model in trained:
        model.requires_grad_(True).train()
    made = StableDiffusion(backbone.tokenizer, *trained, backbone.scheduler)
    assert {id(model) for model in made.models} == {id(model) for model in trained}
    for model in made.models:
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_by_choice(tiny_sd: Path) -> None:
    backbone = load_backbone(str(tiny_sd), device="cpu", dtype="bfloat16")
    assert {backbone.dtype, backbone.encoders[0].model.dtype, backbone.vae.dtype} == {torch.bfloat16}
    assert backbone.word_dtype == torch.float32
    assert backbone.vocabulary_mean.dtype == torch.float32


def test_sizes(backbone: StableDiffusion) -> None:
    assert (backbone.resolution, backbone.vae_factor) == (16, 2)
    assert (backbone.embedding_dim, backbone.max_tokens) == (32, tiny.MAX_TOKENS)


def test_the_vocabulary(backbone: StableDiffusion) -> None:
    table = backbone.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(backbone.vocabulary_mean, table.mean(dim=0))
    ((columns, norm),) = backbone.encoder_norms
    assert columns == slice(0, 32)
    assert norm == pytest.approx(table.norm(dim=1).mean().item())


def test_a_words_parts_and_rows(backbone: StableDiffusion) -> None:
    rows = torch.randn(2, 32)
    parts = backbone.split(rows)
    assert list(parts) == ["clip_l"]
    assert torch.equal(backbone.join(parts), rows)
    assert torch.equal(backbone.join({"clip_h": rows}), rows), "files of one encoder may not say which"


@pytest.mark.parametrize(
    ("sizes", "model", "listed"),
    [
        ({"clip_l": 8}, "another model", r"clip_l \(8\)"),
        ({"clip_l": 768}, "Stable Diffusion 1", r"clip_l \(768\)"),
        ({"clip_h": 1024}, "Stable Diffusion 2", r"clip_h \(1024\)"),
        (
            {"clip_l": 32, "clip_g": 40},
            "Stable Diffusion XL, or 3 without T5",
            r"clip_l \(32\) and clip_g \(40\)",
        ),
        ({"clip_g": 40}, "another model", r"clip_g \(40\)"),
    ],
)
def test_words_of_other_models_are_refused(
    backbone: StableDiffusion, sizes: dict[str, int], model: str, listed: str
) -> None:
    word = {name: torch.zeros(1, size) for name, size in sizes.items()}
    message = (
        rf"learned for {model}: it has vectors for {listed}, this Stable Diffusion .* takes clip_l \(32\)"
    )
    with pytest.raises(ValueError, match=message):
        backbone.join(word)


def test_moving_and_predicting_change_no_weight(own: StableDiffusion) -> None:
    before = digest(own)
    assert own.to("cpu") is own
    own.latent_moments(np.zeros((1, 16, 16, 3), np.uint8))
    own.predict(torch.zeros(1, *tiny.LATENT_SHAPE), torch.tensor([3]), own.unconditional(1))
    assert digest(own) == before
