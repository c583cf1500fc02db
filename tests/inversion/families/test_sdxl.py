"""Stable Diffusion XL: two encoders, the pooled prompt, sizes; against plain diffusers and plain loops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.learning import alone, assert_same, digest, run
from textinv_ray.config.job import JobConfig, ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_ids, sample_images
from textinv_ray.inversion.task import ConceptTask

PROMPTS = ["a photo of <x>", "<x> and <x>, my <x>!", "a cat"]
SIZES = ((48, 64, 0, 3), (64, 48, 2, 0), (16, 16, 0, 0))
CONFIG = JobConfig.from_dict({"training": {"max_grad_norm": 0.05}})
CONCEPTS = [
    tiny.concept(0, steps=3, batch_size=1, crops=tuple((size,) for size in SIZES)),
    tiny.concept(1, steps=2, batch_size=3, num_vectors=2, norm_control="rescale"),
    tiny.concept(2, steps=4, batch_size=2, norm_control="regularize", regularization_weight=0.01),
]


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> StableDiffusionXL:
    return tiny.load_sdxl(tiny_sdxl)


@pytest.fixture(scope="module")
def sdxl64(tiny_sdxl: Path) -> StableDiffusionXL:
    backbone = tiny.load_sdxl(tiny_sdxl)
    for model in backbone.models:
        model.to(torch.float64)
    return backbone


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 72, generator=torch.Generator().manual_seed(seed)) * 0.1


def pipeline_with(
    folder: Path, vectors: torch.Tensor, pools_at_end: bool = True
) -> StableDiffusionXLPipeline:
    """A plain pipeline with the word <x>, loaded by diffusers' own methods."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    first, second = vectors[:, :32], vectors[:, 32:]
    pipeline.load_textual_inversion(
        first, token="<x>", text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
    )
    pipeline.load_textual_inversion(
        second, token="<x>", text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
    )
    if pools_at_end:
        pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
    return pipeline


def test_prompts_without_words_are_encoded_as_the_pipeline_does(
    sdxl: StableDiffusionXL, tiny_sdxl: Path
) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    prompts = ["a photo of a cat", "", "unknown things, too"]
    expected, _, pooled, _ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    condition = sdxl.encode(words.tokenize(sdxl, prompts))
    assert torch.equal(condition.hidden_states, expected)
    torch.testing.assert_close(condition.pooled, pooled)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_words_are_encoded_as_the_pipeline_does_that_pools_at_the_end_token(
    sdxl: StableDiffusionXL, tiny_sdxl: Path, num_vectors: int
) -> None:
    vectors = rows(num_vectors)
    condition = sdxl.encode(words.tokenize(sdxl, PROMPTS, {"<x>": num_vectors}), vectors)
    for pools_at_end in (True, False):
        pipeline = pipeline_with(tiny_sdxl, vectors, pools_at_end)
        assert pipeline.text_encoder_2.config.eos_token_id == 2
        expected, _, pooled, _ = pipeline.encode_prompt(
            PROMPTS, device="cpu", do_classifier_free_guidance=False
        )
        assert torch.equal(condition.hidden_states, expected)
        assert condition.pooled is not None
        # The trap: with `eos_token_id: 2` a prompt is pooled at its learned token, where it has one
        same = [
            torch.allclose(ours, theirs, atol=1e-6)
            for ours, theirs in zip(condition.pooled, pooled, strict=True)
        ]
        assert same == ([True] * 3 if pools_at_end else [False, False, True])


@pytest.mark.parametrize("options", [{"optimizer": "directional"}, {"norm_control": "rescale"}])
def test_an_encoder_that_does_not_learn_keeps_the_initializer(
    sdxl64: StableDiffusionXL, options: dict[str, Any]
) -> None:
    config = JobConfig.from_dict({"training": {"encoders": ["clip_l"]}})
    plain = ConceptTask(tiny.concept(), sdxl64, config).vectors
    word = ConceptTask(tiny.concept(**options), sdxl64, config).vectors
    first, second = (encoder.columns for encoder in sdxl64.encoders)
    assert torch.equal(word[:, second], plain[:, second])
    assert not torch.equal(word[:, first], plain[:, first])


def test_gradients_reach_the_word_through_both_encoders_and_the_pooled_prompt(
    sdxl: StableDiffusionXL,
) -> None:
    ids = words.tokenize(sdxl, ["a photo of <x>"], {"<x>": 1})
    vectors = rows(1).requires_grad_()
    condition = sdxl.encode(ids, vectors)
    assert condition.pooled is not None
    (of_states,) = torch.autograd.grad(condition.hidden_states.square().sum(), vectors, retain_graph=True)
    (of_pooled,) = torch.autograd.grad(condition.pooled.square().sum(), vectors)
    assert (of_states != 0).all()
    assert (of_pooled[:, :32] == 0).all()
    assert (of_pooled[:, 32:] != 0).all()


def test_a_step_is_that_of_a_plain_loop_with_diffusers_own_calls(
    sdxl: StableDiffusionXL, tiny_sdxl: Path
) -> None:
    """Losses and gradient of one step, with resized embedding tables and the UNet called as diffusers' script does."""
    task = ConceptTask(CONCEPTS[0], sdxl, CONFIG)
    pack = Pack(sdxl, CONFIG, 1)
    pack.add(task)
    losses, gradient = pack.losses_and_gradient()
    draws, vectors = task.draw(), task.vectors

    pipeline = pipeline_with(tiny_sdxl, vectors)
    tables = [
        encoder.get_input_embeddings().weight for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    ]
    for table in tables:
        table.requires_grad_()
    latents = task.tensors["latent_means"] + task.tensors["latent_stds"] * draws.noise[0]
    latents = latents[draws.latents]
    timesteps = sdxl.levels(draws.levels)
    noisy = sdxl.scheduler.add_noise(latents, draws.noise[1], timesteps)
    concept = task.concept
    prompt = words.fill(concept.templates[int(draws.prompts[0])], concept.placeholder_token)
    prompt = prompt.replace(concept.placeholder_token, "<x>")
    states, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    image = int(draws.latents[0]) // 2  # each with its mirror image
    height, width, top, left = SIZES[image]
    if int(draws.latents[0]) % 2 and width > height:
        left = round(width * 16 / height) - 16 - left
    time_ids = pipeline._get_add_time_ids((height, width), (top, left), (16, 16), torch.float32, 16)
    prediction = pipeline.unet(
        noisy,
        timesteps,
        states,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        return_dict=False,
    )[0]
    loss = (prediction - draws.noise[1]).square().mean()
    expected = torch.autograd.grad(loss, tables)
    torch.testing.assert_close(losses, loss.detach()[None], rtol=1e-5, atol=1e-7)
    whole = torch.cat([part[-1:] for part in expected], dim=1)
    torch.testing.assert_close(gradient, whole, rtol=1e-3, atol=1e-7)


@pytest.fixture(scope="module")
def learned_alone(sdxl64: StableDiffusionXL) -> list[ConceptTask]:
    return [alone(concept, sdxl64, CONFIG) for concept in CONCEPTS]


@settings(max_examples=6, deadline=None)
@given(order=st.lists(st.sampled_from(range(len(CONCEPTS))), min_size=1, unique=True), size=st.integers(1, 3))
def test_packed_equals_alone(
    sdxl64: StableDiffusionXL, learned_alone: list[ConceptTask], order: list[int], size: int
) -> None:
    before = digest(sdxl64)
    tasks = [ConceptTask(CONCEPTS[index], sdxl64, CONFIG) for index in order]
    run(tasks, sdxl64, size, CONFIG)
    for index, task in zip(order, tasks, strict=True):
        assert_same(task, learned_alone[index])
    assert digest(sdxl64) == before


def test_a_state_is_saved_and_restored(sdxl64: StableDiffusionXL, learned_alone: list[ConceptTask]) -> None:
    task = ConceptTask(CONCEPTS[2], sdxl64, CONFIG)
    pack = Pack(sdxl64, CONFIG, 1)
    pack.add(task)
    pack.step()
    resumed = ConceptTask(CONCEPTS[2], sdxl64, CONFIG)
    resumed.restore(task.to_bytes())
    run([resumed], sdxl64, 1, CONFIG)
    assert_same(resumed, learned_alone[2])


def test_norms_are_controlled_for_each_encoder(
    sdxl64: StableDiffusionXL, learned_alone: list[ConceptTask]
) -> None:
    parts = sdxl64.split(learned_alone[1].vectors)
    for encoder in sdxl64.encoders:
        norms = parts[encoder.name].norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, encoder.norm))
    assert sdxl64.encoders[0].norm != pytest.approx(sdxl64.encoders[1].norm, rel=0.01)


def test_sizes_and_crops_matter(sdxl64: StableDiffusionXL) -> None:
    small = tiny.concept(0, steps=1, batch_size=1, crops=(((500, 500, 0, 100),),) * 3)
    one, other = (alone(concept, sdxl64, CONFIG) for concept in (CONCEPTS[0], small))
    assert one.loss_history[0] != other.loss_history[0]


@pytest.mark.parametrize("sampler", ["dpmsolver++", "ddim"])
@pytest.mark.parametrize("negative", [None, "", "a <x> house"])
def test_pictures_equal_those_of_a_plain_script(
    sdxl: StableDiffusionXL, tiny_sdxl: Path, sampler: str, negative: str | None
) -> None:
    config = ReviewConfig.model_validate(
        {"num_inference_steps": 4, "sampler": sampler, "guidance_scale": 5.0}
    )
    vectors = rows(2)
    pipeline = pipeline_with(tiny_sdxl, vectors)
    kind = DDIMScheduler if sampler == "ddim" else DPMSolverMultistepScheduler
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    plain = [
        pipeline(
            prompt,
            negative_prompt=negative,
            num_inference_steps=4,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed, prompt in enumerate(PROMPTS)
    ]
    expected = (np.stack(plain) * 255).round().astype(int)
    counts = {"<x>": 2}
    negative_ids = None if negative is None else words.tokenize(sdxl, [negative] * 3, counts)
    ours = sample_ids(
        sdxl, words.tokenize(sdxl, PROMPTS, counts), vectors, [0, 1, 2], config, negative_ids=negative_ids
    )
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert expected.std() > 5


def test_without_zeros_for_empty_prompts(tmp_path: Path) -> None:
    """`force_zeros_for_empty_prompt: false`: no negative prompt means the empty one."""
    folder = tiny.save_stable_diffusion_xl(tmp_path, force_zeros_for_empty_prompt=False)
    backbone, config = tiny.load_sdxl(folder), ReviewConfig(num_inference_steps=2)
    ids = words.tokenize(backbone, ["a cat"])
    none = sample_ids(backbone, ids, None, [0], config)
    empty = sample_ids(backbone, ids, None, [0], config, negative_ids=words.tokenize(backbone, [""]))
    assert np.array_equal(none, empty)


def test_v_prediction_with_zero_terminal_snr(tmp_path: Path) -> None:
    folder = tiny.save_stable_diffusion_xl(tmp_path, "v_prediction", rescale_betas_zero_snr=True)
    backbone = tiny.load_sdxl(folder)
    assert float(backbone.scheduler.alphas_cumprod[-1]) == 0
    latents, noise = torch.randn(2, 1, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    noisy, target = backbone.corrupt(latents, noise, torch.tensor([999]))
    torch.testing.assert_close(noisy, noise)
    torch.testing.assert_close(target, -latents)
    pictures = sample_images(backbone, {}, ["a cat"], [0], ReviewConfig(num_inference_steps=4))
    assert pictures.std() > 5
    task = alone(CONCEPTS[0], backbone, CONFIG)
    assert task.done
    assert task.loss_history.isfinite().all()


def test_a_vae_that_overflows_says_so(sdxl: StableDiffusionXL) -> None:
    broken = copy.copy(sdxl)
    broken.vae = copy.deepcopy(sdxl.vae)
    broken.vae.encoder.conv_in.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"the VAE overflows in float32: set model\.vae_dtype"):
        broken.latent_moments(np.zeros((1, 16, 16, 3), np.uint8))


def test_the_vae_has_a_precision_of_its_own(tiny_sdxl: Path) -> None:
    backbone = load_backbone(str(tiny_sdxl), device="cpu", dtype="float16")
    assert {model.dtype for model in backbone.models[:3]} == {torch.float16}
    assert backbone.vae.dtype == torch.float32
    chosen = load_backbone(str(tiny_sdxl), device="cpu", dtype="float32", vae_dtype="bfloat16")
    assert chosen.vae.dtype == torch.bfloat16
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert chosen.latent_moments(images)[0].dtype == torch.float32
    assert sample_images(chosen, {}, ["a cat"], [0], ReviewConfig(num_inference_steps=1)).shape == (
        1,
        16,
        16,
        3,
    )


def test_a_word_of_another_family_is_refused(sdxl: StableDiffusionXL) -> None:
    with pytest.raises(
        ValueError, match=r"vectors for clip_l \(32\), this Stable Diffusion XL model takes clip_l"
    ):
        words.rows_of(sdxl, {"clip_l": np.zeros((1, 32), np.float32)})
