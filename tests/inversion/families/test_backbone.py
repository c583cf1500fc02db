from __future__ import annotations

import copy
import json
import platform
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from tests.support import tiny
from textinv_ray.inversion import backbone as backbones
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.util.errors import UserError


def random_vectors(count: int, dim: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_prompts_without_words_are_encoded_as_transformers_does(backbone: StableDiffusion) -> None:
    ids = words.tokenize(backbone, ["a photo of a cat", "", "unknown things, too"])
    expected = backbone.text_encoder(ids).last_hidden_state
    assert torch.equal(backbone.encode(ids).hidden_states, expected)
    assert torch.equal(backbone.encode(ids, random_vectors(2)).hidden_states, expected)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_words_are_encoded_as_a_plain_pipeline_does(
    backbone: StableDiffusion, tiny_sd: Path, num_vectors: int
) -> None:
    vectors = random_vectors(num_vectors)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipeline.load_textual_inversion({"<x>": vectors})
    prompts = ["a photo of <x>", "<x> and <x>, my <x>!", "no word"]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    ids = words.tokenize(backbone, prompts, {"<x>": num_vectors})
    assert torch.equal(backbone.encode(ids, vectors).hidden_states, expected)


def test_gradient_is_that_of_a_resized_table(backbone: StableDiffusion) -> None:
    rows = random_vectors(2).requires_grad_()
    ids = words.tokenize(backbone, ["a <x> <x> on the <y>"], {"<x>": 1, "<y>": 1})
    (gradient,) = torch.autograd.grad(backbone.encode(ids, rows).hidden_states.square().sum(), rows)

    resized = copy.deepcopy(backbone.text_encoder)
    resized.resize_token_embeddings(backbone.vocabulary_size + 2)
    table = resized.get_input_embeddings().weight
    table.data[-2:] = rows.detach()
    table.requires_grad_()
    (expected,) = torch.autograd.grad(resized(ids).last_hidden_state.square().sum(), table)
    torch.testing.assert_close(gradient, expected[-2:])


def test_no_hook_stays_behind(backbone: StableDiffusion) -> None:
    ids = words.tokenize(backbone, ["a <x>"], {"<x>": 1})
    with pytest.raises(RuntimeError):
        backbone.encode(ids, random_vectors(1, dim=31)).hidden_states
    backbone.encode(ids, random_vectors(1)).hidden_states
    assert not backbone.text_encoder.get_input_embeddings()._forward_hooks


def test_threads_do_not_meet_each_others_words(backbone: StableDiffusion) -> None:
    ids = words.tokenize(backbone, ["a photo of <x>"], {"<x>": 1})
    tables = [random_vectors(1, seed=seed) for seed in range(20)]
    expected = [backbone.encode(ids, table).hidden_states for table in tables]
    # A pause where one thread has its words in place and another may come in
    pause = backbone.text_encoder.embeddings.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    try:
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda table: backbone.encode(ids, table).hidden_states, tables))
    finally:
        pause.remove()
    assert all(torch.equal(result, known) for result, known in zip(results, expected, strict=True))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_is_the_papers(backbone: StableDiffusion, backbone_v: StableDiffusion, prediction: str) -> None:
    """The loss written out from alpha_bar, without diffusers' scheduler."""
    model = backbone if prediction == "epsilon" else backbone_v
    assert model.scheduler.config.prediction_type == prediction
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, *tiny.LATENT_SHAPE, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    hidden = model.encode(words.tokenize(model, ["a cat", "a dog", "a man"])).hidden_states

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)[timesteps].float()[:, None, None, None]
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    target = noise
    if prediction == "v_prediction":
        target = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    expected = (model.predict(noisy, timesteps, hidden) - target).square().flatten(1).mean(1)
    loss = model.denoising_loss(latents, noise, timesteps, hidden)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_latent_moments(backbone: StableDiffusion) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    means, stds = backbone.latent_moments(images, batch_size=2)
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = backbone.vae.encode(pixels).latent_dist
    scale = backbone.vae.config.scaling_factor
    torch.testing.assert_close(means, posterior.mean * scale)
    torch.testing.assert_close(stds, posterior.std * scale)
    assert means.shape == (5, *tiny.LATENT_SHAPE)


def test_everything_is_frozen(backbone: StableDiffusion) -> None:
    trained = (
        copy.deepcopy(backbone.text_encoder),
        copy.deepcopy(backbone.unet),
        copy.deepcopy(backbone.vae),
    )
    for model in trained:
        model.requires_grad_(True).train()
    backbone = Backbone(backbone.tokenizer, *trained, backbone.scheduler)
    for model in backbone.models:
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_by_choice(tiny_sd: Path) -> None:
    backbone = load_backbone(str(tiny_sd), device="cpu", dtype="bfloat16")
    assert {backbone.dtype, backbone.text_encoder.dtype, backbone.vae.dtype} == {torch.bfloat16}
    assert backbone.word_dtype == torch.float32


@pytest.mark.parametrize(("dtype", "mapped"), [("float32", True), ("bfloat16", False)])
def test_workers_of_a_node_share_weights_of_the_files_precision(
    tiny_sd: Path, tmp_path: Path, dtype: str, mapped: bool
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    backbone = load_backbone(str(folder), device="cpu", dtype=dtype)
    files = Path("/proc/self/maps").read_text()
    for name in ("unet", "vae", "text_encoder"):
        assert (str(folder / name) in files) == mapped, backbone


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_f": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True, "amx_tile": True}, torch.float32),
        ({"bf16": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_the_fastest_precision_of_a_cpu(capabilities: dict[str, bool], dtype: torch.dtype) -> None:
    assert backbones.fastest_cpu_dtype(capabilities) == dtype


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
def test_auto_is_bfloat16_where_the_kernel_says_that_the_cpu_has_it(tiny_sd: Path) -> None:
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    has_bfloat16 = bool(flags & {"amx_bf16", "avx512_bf16"})
    assert (load_backbone(str(tiny_sd), device="cpu").dtype == torch.bfloat16) == has_bfloat16


def test_plain_attention_gives_what_fused_attention_does(
    backbone: StableDiffusion, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention is plain on a CPU with small latents, and fused elsewhere."""
    assert {type(found) for found in backbone.unet.attn_processors.values()} == {AttnProcessor}
    monkeypatch.setattr(backbones, "PLAIN_ATTENTION_MAX_SIDE", 0)
    fused = tiny.load_sd(tiny_sd)
    assert {type(found) for found in fused.unet.attn_processors.values()} == {AttnProcessor2_0}
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *tiny.LATENT_SHAPE, generator=generator)
    hidden_states = torch.randn(2, 16, backbone.unet.config.cross_attention_dim, generator=generator)
    inputs = (latents, torch.tensor([1, 900]), hidden_states)
    torch.testing.assert_close(backbone.predict(*inputs), fused.predict(*inputs), atol=1e-5, rtol=1e-4)


def test_the_text_encoders_attention_is_plain_in_bfloat16_on_a_cpu(
    backbone: StableDiffusion, tiny_sd: Path
) -> None:
    plain = load_backbone(str(tiny_sd), device="cpu", dtype="bfloat16")
    ids = torch.randint(0, 50, (2, backbone.max_tokens), generator=torch.Generator().manual_seed(0))
    # Fused attention has no attention weights to return
    assert not backbone.text_encoder(ids, output_attentions=True).attentions
    assert plain.text_encoder(ids, output_attentions=True).attentions
    expected, found = backbone.encode(ids).hidden_states, plain.encode_prompts(ids).float()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_unusable_models_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be loaded"):
        load_backbone(str(tmp_path / "nowhere"))

    inpainting = shutil.copytree(tiny_sd, tmp_path / "inpainting")
    config = inpainting / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    with pytest.raises(UserError, match="text-to-image"):
        load_backbone(str(inpainting))

    other = shutil.copytree(tiny_sd, tmp_path / "sample")
    config = other / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(UserError, match="'sample'"):
        load_backbone(str(other))


def test_pickles_are_never_read(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "pickled")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="can't be loaded"):
        load_backbone(str(folder))
