from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from tests.support import tiny
from textinv_ray.inversion import words
from textinv_ray.inversion.families import diffusion_unet
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_is_the_papers(backbone: StableDiffusion, backbone_v: StableDiffusion, prediction: str) -> None:
    """The loss written out from alpha_bar, without diffusers' scheduler."""
    model = backbone if prediction == "epsilon" else backbone_v
    assert model.scheduler.config.prediction_type == prediction
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, *tiny.LATENT_SHAPE, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    condition = model.encode(words.tokenize(model, ["a cat", "a dog", "a man"]))

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)[timesteps].float()[:, None, None, None]
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    target = noise
    if prediction == "v_prediction":
        target = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    expected = (model.predict(noisy, timesteps, condition) - target).square().flatten(1).mean(1)
    loss = model.denoising_loss(latents, noise, timesteps, condition)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_levels_are_timesteps(backbone: StableDiffusion) -> None:
    """Each timestep has an equal part of [0, 1), its own end not included."""
    timesteps = torch.arange(1000)
    uniform = timesteps.double() / 1000
    first = backbone.levels(uniform + 1e-9)
    assert first.dtype == torch.int64
    assert torch.equal(first, timesteps)
    assert torch.equal(backbone.levels(uniform + 0.001 - 1e-9), timesteps)
    assert backbone.levels(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 999]


def test_plain_attention_gives_what_fused_attention_does(
    backbone: StableDiffusion, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention is plain on a CPU with small latents, and fused elsewhere."""
    assert {type(found) for found in backbone.unet.attn_processors.values()} == {AttnProcessor}
    monkeypatch.setattr(diffusion_unet, "PLAIN_ATTENTION_MAX_SIDE", 0)
    fused = tiny.load_sd(tiny_sd)
    assert {type(found) for found in fused.unet.attn_processors.values()} == {AttnProcessor2_0}
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *tiny.LATENT_SHAPE, generator=generator)
    condition = Condition(torch.randn(2, 16, backbone.unet.config.cross_attention_dim, generator=generator))
    timesteps = torch.tensor([1, 900])
    torch.testing.assert_close(
        backbone.predict(latents, timesteps, condition),
        fused.predict(latents, timesteps, condition),
        atol=1e-5,
        rtol=1e-4,
    )


def test_the_text_encoders_attention_is_plain_in_bfloat16_on_a_cpu(
    backbone: StableDiffusion, tiny_sd: Path
) -> None:
    plain = load_backbone(str(tiny_sd), device="cpu", dtype="bfloat16")
    ids = torch.randint(0, 50, (2, backbone.max_tokens), generator=torch.Generator().manual_seed(0))
    # Fused attention has no attention weights to return
    assert not backbone.text_encoder(ids, output_attentions=True).attentions
    assert plain.encoders[0].model(ids, output_attentions=True).attentions
    expected, found = backbone.encode(ids).hidden_states, plain.encode(ids).hidden_states.float()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_other_predictions_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_sd, tmp_path / "sample")
    config = other / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(UserError, match="'sample'"):
        load_backbone(str(other))
