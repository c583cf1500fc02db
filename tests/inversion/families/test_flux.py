"""Flux.1: T5's states, CLIP's pooled state, packed latents, guidance as an input; against plain diffusers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

import textinv_ray
from tests.support import tiny, tiny_flow
from textinv_ray.config.job import JobConfig, ReviewConfig
from textinv_ray.config.training import TimestepsConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.flux import Flux, pack, unpack
from textinv_ray.inversion.generation import Request, generate
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.task import ConceptTask

PROMPTS = ["a photo of <x>", "<x> and <x>, my <x>!", "a cat"]
CONFIG = JobConfig()


@pytest.fixture(scope="module")
def flux(tiny_flux: Path) -> Flux:
    return tiny_flow.load_flux(tiny_flux)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flow.save_flux(tmp_path_factory.mktemp("schnell"), guided=False)


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 56, generator=torch.Generator().manual_seed(0)) * 0.1


def pipeline_with(backbone: Flux, folder: Path, vectors: torch.Tensor, tmp_path: Path) -> FluxPipeline:
    """A plain pipeline with the word <x>."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(words.save_learned_embeds(backbone, "<x>", vectors))
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert textinv_ray.load_words(pipeline, str(file)) == ["<x>"]
    return pipeline


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_prompts_are_encoded_as_the_pipeline_does(
    flux: Flux, tiny_flux: Path, tmp_path: Path, num_vectors: int
) -> None:
    vectors = rows(num_vectors)
    pipeline = pipeline_with(flux, tiny_flux, vectors, tmp_path)
    states, pooled, _ = pipeline.encode_prompt(PROMPTS, None, max_sequence_length=tiny.MAX_TOKENS)
    condition = flux.encode(words.tokenize(flux, PROMPTS, {"<x>": num_vectors}), vectors)
    torch.testing.assert_close(condition.hidden_states, states)
    torch.testing.assert_close(condition.pooled, pooled)


def test_clip_reaches_the_pooled_state_alone(flux: Flux) -> None:
    ids = words.tokenize(flux, ["a photo of <x>"], {"<x>": 1})
    vectors = rows(1).requires_grad_()
    condition = flux.encode(ids, vectors)
    assert condition.pooled is not None
    (of_states,) = torch.autograd.grad(condition.hidden_states.square().sum(), vectors, retain_graph=True)
    (of_pooled,) = torch.autograd.grad(condition.pooled.square().sum(), vectors)
    assert (of_states[:, 32:] != 0).all()
    assert (of_pooled[:, :32] != 0).all()
    assert of_states[:, :32].count_nonzero() == of_pooled[:, 32:].count_nonzero() == 0


@pytest.mark.parametrize("is_guided", [True, False])
def test_a_step_is_that_of_a_plain_loop_with_diffusers_own_calls(
    tiny_flux: Path, schnell: Path, tmp_path: Path, is_guided: bool
) -> None:
    """Losses and gradient of one step, with larger embedding tables and the transformer called as diffusers does."""
    folder = tiny_flux if is_guided else schnell
    flux = tiny_flow.load_flux(folder)
    task = ConceptTask(tiny.concept(0, steps=3, batch_size=1), flux, CONFIG)
    packed = Pack(flux, CONFIG, 1)
    packed.add(task)
    losses, gradient = packed.losses_and_gradient()
    draws, vectors = task.draw(), task.vectors

    pipeline = pipeline_with(flux, folder, vectors, tmp_path)
    tables = [
        encoder.get_input_embeddings().weight for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    ]
    for table in tables:
        table.requires_grad_()
    latents = task.tensors["latent_means"] + task.tensors["latent_stds"] * draws.noise[0]
    latents = latents[draws.latents]
    u = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(draws.levels)).float()
    # 16 tokens; 256 have 0.5 and 4096 have 1.15
    shift = math.exp(0.5 + (1.15 - 0.5) * (16 - 256) / (4096 - 256)) if is_guided else 1.0
    sigmas = shift * u / (1 + (shift - 1) * u)
    noisy = (1 - sigmas) * latents + sigmas * draws.noise[1]
    concept = task.concept
    prompt = words.fill(concept.templates[int(draws.prompts[0])], "<x>")
    states, pooled, text_ids = pipeline.encode_prompt(prompt, None, max_sequence_length=tiny.MAX_TOKENS)
    prediction = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, 1, 4, 8, 8),
        timestep=sigmas,
        guidance=torch.tensor([3.5]) if is_guided else None,
        pooled_projections=pooled,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
        return_dict=False,
    )[0]
    prediction = pipeline._unpack_latents(prediction, 16, 16, 2)
    loss = (prediction - (draws.noise[1] - latents)).square().mean()
    expected = torch.autograd.grad(loss, tables)
    torch.testing.assert_close(losses, loss.detach()[None], rtol=1e-5, atol=1e-7)
    ids = [tokens.convert_tokens_to_ids("<x>") for tokens in (pipeline.tokenizer, pipeline.tokenizer_2)]
    whole = torch.cat([part[id_] for part, id_ in zip(expected, ids, strict=True)])
    torch.testing.assert_close(gradient[0], whole, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("is_guided", [True, False])
def test_pictures_equal_those_of_a_plain_script(
    tiny_flux: Path, schnell: Path, tmp_path: Path, is_guided: bool
) -> None:
    folder = tiny_flux if is_guided else schnell
    flux, vectors = tiny_flow.load_flux(folder), rows(2)
    pipeline = pipeline_with(flux, folder, vectors, tmp_path)
    plain = [
        pipeline(
            prompt,
            num_inference_steps=3,
            guidance_scale=2.0,
            height=16,
            width=16,
            max_sequence_length=tiny.MAX_TOKENS,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed, prompt in enumerate(PROMPTS)
    ]
    expected = (np.stack(plain) * 255).round().astype(int)
    config = ReviewConfig(num_inference_steps=3, guidance_scale=2.0, sampler="euler")
    ours = sample_images(flux, {"<x>": vectors}, PROMPTS, [0, 1, 2], config)
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert expected.std() > 5
    other = config.model_copy(update={"guidance_scale": 6.0})
    assert np.array_equal(ours, sample_images(flux, {"<x>": vectors}, PROMPTS, [0, 1, 2], other)) != is_guided


def test_the_shift_grows_with_the_resolution(flux: Flux) -> None:
    """mu is 0.5 for 256 tokens and 1.15 for 4096, two latents a token along a side."""
    assert flux.shift((32, 32)) == pytest.approx(math.exp(0.5))
    assert flux.shift((128, 128)) == pytest.approx(math.exp(1.15))
    fixed = flux.levels(torch.tensor([0.5]), TimestepsConfig(shift=3.0), (32, 32))
    assert float(fixed) == pytest.approx(0.75)


def test_tokens_and_latents() -> None:
    latents = torch.arange(2 * 4 * 6 * 8.0).reshape(2, 4, 6, 8)
    assert pack(latents).shape == (2, 12, 16)
    assert pack(latents)[0, 0, :4].tolist() == latents[0, 0, :2, :2].flatten().tolist()
    assert torch.equal(unpack(pack(latents), 6, 8), latents)


def test_prompts_of_schnell_are_shorter(schnell: Path) -> None:
    lengths = []
    for folder in (tiny_flow.save_flux(schnell.parent / "long"), schnell):
        backbone = tiny_flow.load_flux(folder)
        backbone.tokenizer_2.model_max_length = 1000
        lengths.append(backbone.encoders[1].max_tokens)
    assert lengths == [512, 256]


def test_what_flux_does_not_have(flux: Flux) -> None:
    config = ReviewConfig(num_inference_steps=1, sampler="euler")
    with pytest.raises(ValueError, match=r"negative prompts: this Flux\.1 model takes none"):
        generate(flux, {}, [Request("a cat", negative_prompt="a dog")], config)
    with pytest.raises(ValueError, match=r"size: images of Flux\.1 have sides of a multiple of 16, not 24"):
        generate(flux, {}, [Request("a cat", size=24)], config)
