from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import sampling, words
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.sampling import sample_images

FAST = ReviewConfig(num_inference_steps=4)
PROMPTS = ["a photo of <x>", "<x> and <x>, red", "a photo of a cat"]


def vectors(count: int) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(3))


def plain_script(model: Path, file: Path, config: ReviewConfig, seeds: list[int]) -> np.ndarray:
    """A plain diffusers script that loads the word's file."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    schedulers = {"dpmsolver++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}
    pipeline.scheduler = schedulers[config.sampler].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(str(file))
    pictures = [
        pipeline(
            prompt,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.mark.parametrize("num_vectors", [1, 3])
@pytest.mark.parametrize("sampler", ["dpmsolver++", "ddim"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_pictures_equal_those_of_a_plain_script(
    backbone: StableDiffusion,
    backbone_v: StableDiffusion,
    tiny_sd: Path,
    tiny_sd_v: Path,
    tmp_path: Path,
    num_vectors: int,
    sampler: Literal["dpmsolver++", "ddim"],
    prediction: str,
    guidance_scale: float,
) -> None:
    model, folder = (backbone, tiny_sd) if prediction == "epsilon" else (backbone_v, tiny_sd_v)
    config = ReviewConfig(num_inference_steps=5, sampler=sampler, guidance_scale=guidance_scale)
    learned = vectors(num_vectors)
    file = tmp_path / "learned_embeds.safetensors"
    file.write_bytes(words.save_learned_embeds(backbone, "<x>", learned))

    ours = sample_images(model, {"<x>": learned}, PROMPTS, [7, 8, 9], config)
    plain = plain_script(folder, file, config, [7, 8, 9])
    assert ours.shape == plain.shape == (3, 16, 16, 3)
    difference = np.abs(ours.astype(int) - plain.astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01
    assert plain.std() > 5  # the pictures show something


def test_a_picture_depends_on_prompt_and_seed_alone(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, seeds = [*PROMPTS, *PROMPTS], [0, 1, 2, 3, 4, 5]
    learned = {"<x>": vectors(2)}
    together = sample_images(backbone, learned, prompts, seeds, FAST)
    monkeypatch.setattr(sampling, "MAX_BATCH_SIZE", 4)
    in_batches = sample_images(backbone, learned, prompts, seeds, FAST)
    alone = sample_images(backbone, learned, [prompts[4]], [4], FAST)
    assert np.abs(together.astype(int) - in_batches).max() <= 1
    assert np.abs(together[4].astype(int) - alone[0]).max() <= 1
    assert np.abs(together[0].astype(int) - together[3]).max() > 1


def test_several_words_in_one_prompt(backbone: StableDiffusion) -> None:
    both = {"<x>": vectors(1), "<y>": vectors(2)}
    one = sample_images(backbone, both, ["<x> in <y>"], [0], FAST)
    other = sample_images(backbone, dict(reversed(both.items())), ["<x> in <y>"], [0], FAST)
    assert np.array_equal(one, other)


def test_the_configuration_may_set_the_resolution(backbone: StableDiffusion) -> None:
    small = sample_images(backbone, {}, ["a cat"], [0], FAST.model_copy(update={"resolution": 8}))
    assert small.shape == (1, 8, 8, 3)


def test_no_pictures(backbone: StableDiffusion) -> None:
    assert sample_images(backbone, {}, [], [], FAST).shape == (0, 16, 16, 3)


def test_a_word_is_never_cut_off(backbone: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="would be cut off"):
        sample_images(backbone, {"<x>": vectors(1)}, ["a " * 30 + "<x>"], [0], FAST)


def test_nothing_is_printed(backbone: StableDiffusion, capsys: pytest.CaptureFixture[str]) -> None:
    sample_images(backbone, {}, ["a cat"], [0], FAST)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
