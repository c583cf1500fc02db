"""Words in plain diffusers pipelines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DModel,
)

import textinv_ray
from tests.support import tiny
from tests.support.commands import REPOSITORY
from textinv_ray.concepts.word_files import Word, store_word, write_word
from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import sample_images
from textinv_ray.inversion.words import rows_of
from textinv_ray.util.errors import UserError


def word(*parts: tuple[str, int], count: int = 2) -> Word:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.1, (count, dim)).astype(np.float32) for name, dim in parts}


def pictures(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, prompts: list[str]) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    drawn = pipeline(
        prompts, num_inference_steps=3, guidance_scale=5.0, generator=generators, output_type="np"
    )
    return (drawn.images * 255).round().astype(int)


SDXL = word(("clip_l", 32), ("clip_g", 40))
PROMPTS = ["a photo of <x>", "my <x> on a beach"]
REVIEW = ReviewConfig(num_inference_steps=3, guidance_scale=5.0, sampler="ddim")


def test_words_of_sdxl_draw_what_we_draw(tiny_sdxl: Path, tmp_path: Path) -> None:
    file = tmp_path / "learned_embeds.safetensors"
    file.write_bytes(store_word("<x>", SDXL))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert textinv_ray.load_words(pipeline, str(file)) == ["<x>"]
    backbone = tiny.load_sdxl(tiny_sdxl)
    ours = sample_images(backbone, {"<x>": rows_of(backbone, SDXL)}, PROMPTS, [0, 1], REVIEW)
    assert np.abs(ours - pictures(pipeline, PROMPTS)).max() <= 1


def test_the_documented_lines_without_us_do_the_same(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/sdxl.md: two loads, and the line for the pooled prompt, without which pictures are others."""
    files = write_word("diffusers", "<ada>", SDXL)
    for suffix, data in files.items():
        (tmp_path / f"ada{suffix}.safetensors").write_bytes(data)
    text = (REPOSITORY / "docs" / "sdxl.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "load_text" in block]
    *loads, pooling = map(ast.unparse, ast.parse(code).body)
    assert len(loads) == len(files) == 2
    monkeypatch.chdir(tmp_path)

    def drawn(*lines: str) -> np.ndarray:
        pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
        for line in lines:
            exec(line, {"pipeline": pipeline})
        return pictures(pipeline, ["a photo of <ada>"])

    with_us = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    Path("both.safetensors").write_bytes(store_word("<ada>", SDXL))
    textinv_ray.load_words(with_us, "both.safetensors")
    expected = pictures(with_us, ["a photo of <ada>"])
    assert np.array_equal(drawn(*loads, pooling), expected)
    assert not np.array_equal(drawn(*loads), expected)


def test_words_of_stable_diffusion_in_other_pipelines(tiny_sd: Path, tmp_path: Path) -> None:
    file = tmp_path / "cat.safetensors"
    file.write_bytes(store_word("<x>", word(("clip_l", 32), count=3)))
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd, safety_checker=None)
    assert textinv_ray.load_words(pipeline, str(file)) == ["<x>"]
    assert len(pipeline.tokenizer.tokenize(pipeline.maybe_convert_prompt("<x>", pipeline.tokenizer))) == 3


def test_a_word_of_another_family(tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    both, one = tmp_path / "both.safetensors", tmp_path / "one.safetensors"
    both.write_bytes(store_word("<x>", SDXL))
    one.write_bytes(store_word("<y>", word(("clip_l", 32))))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    message = r"'<x>' was learned for Stable Diffusion XL, or 3 without T5: .* and clip_g \(40\), .* takes 32"
    with pytest.raises(UserError, match=message):
        textinv_ray.load_words(pipeline, str(one), str(both))
    assert "<y>" not in pipeline.tokenizer.get_vocab()
    with pytest.raises(UserError, match=r"takes clip_l \(32\) and clip_g \(40\)"):
        textinv_ray.load_words(StableDiffusionXLPipeline.from_pretrained(tiny_sdxl), str(one))


def test_a_word_twice(tiny_sd: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    file.write_bytes(store_word("<y>", word(("clip_l", 32))))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    textinv_ray.load_words(pipeline, str(file))
    with pytest.raises(UserError, match="'<y>' is in the pipeline already"):
        textinv_ray.load_words(pipeline, str(file))


def test_another_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    file.write_bytes(store_word("<y>", word(("clip_l", 32))))
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    with pytest.raises(UserError, match="can't be loaded into a DDIMPipeline"):
        textinv_ray.load_words(DDIMPipeline(unet, DDIMScheduler()), str(file))


def test_the_package_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        textinv_ray.nothing  # noqa: B018
