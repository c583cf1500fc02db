"""Models of Stable Diffusion's sizes with random weights: speed and memory don't depend on their values.

    python benchmarks/random_models.py sdxl FOLDER      # writes a model in diffusers' format, in float16

In a step the VAE has no part (latents are cached), so in memory one with few channels and the right latents stands in
for it. What is written has the real one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.precision import choose_device, choose_dtype
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.model_files.clip_tokenizer import LAYOUTS, load_tokenizer

_TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "layers_per_block": 1,
}
_TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_XL = {
    "cross_attention_dim": 64,
    "transformer_layers_per_block": (1, 2),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
SIZES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # Configuration, and what differs from it in the UNet and the text encoders
    "sd15": ("stable-diffusion-1", {}, {}),
    "sd21": ("stable-diffusion-2", {}, {}),
    "sdxl": ("stable-diffusion-xl", {}, {}),
    # For tests of the benchmarks themselves
    "tiny": ("stable-diffusion-1", {**_TINY_UNET, "cross_attention_dim": 32}, _TINY_TEXT),
    "tiny-sdxl": (
        "stable-diffusion-xl",
        {**_TINY_UNET, **_TINY_XL},
        {**_TINY_TEXT, "projection_dim": 32},
    ),
}


def load(name: str, dtype: str) -> Backbone:
    """A frozen model of one of SIZES on the GPU, if there is one; else on the CPU."""
    device = choose_device("auto")
    precision, before = choose_dtype(dtype, device), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(precision)
    try:
        with torch.device(device):  # made there: a copy would take as much memory again
            return _made(name)
    finally:
        torch.set_default_dtype(before)


def _made(name: str) -> Backbone:
    folder = str(LAYOUTS / SIZES[name][0])
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    shared = {
        "tokenizer": load_tokenizer(folder, "tokenizer"),
        "text_encoder": text_encoder(name, "text_encoder"),
        "unet": unet(name),
        "vae": vae,
        "scheduler": DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
    }
    if not is_xl(name):
        return StableDiffusion(**shared)
    return StableDiffusionXL(
        **shared,
        tokenizer_2=load_tokenizer(folder, "tokenizer_2"),
        text_encoder_2=text_encoder(name, "text_encoder_2"),
    )


def is_xl(name: str) -> bool:
    """Whether a size is one of SDXL's."""
    return SIZES[name][0] == "stable-diffusion-xl"


def unet(name: str) -> UNet2DConditionModel:
    """The UNet of a size with random weights, on torch's default device."""
    layout, changes, _ = SIZES[name]
    config = UNet2DConditionModel.load_config(LAYOUTS / layout, subfolder="unet")
    return UNet2DConditionModel.from_config({**config, **changes})


def text_encoder(name: str, part: str) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text encoder of a size with random weights, on torch's default device."""
    layout, _, changes = SIZES[name]
    config = CLIPTextConfig.from_pretrained(LAYOUTS / layout, subfolder=part, **changes)
    return CLIPTextModelWithProjection(config) if part == "text_encoder_2" else CLIPTextModel(config)


def save(name: str, folder: Path) -> None:
    """Writes a model in diffusers' format, in float16, part after part: in memory there is never more than one."""
    source = LAYOUTS / SIZES[name][0]
    for path in source.rglob("*.json"):
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    numbers = ("", "_2") if is_xl(name) else ("",)
    for number in numbers:
        load_tokenizer(str(source), f"tokenizer{number}").save_pretrained(folder / f"tokenizer{number}")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        for number in numbers:
            text_encoder(name, f"text_encoder{number}").save_pretrained(folder / f"text_encoder{number}")
        unet(name).save_pretrained(folder / "unet")
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(source, subfolder="vae"))
        vae.save_pretrained(folder / "vae")
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    save(options.size, options.folder)


if __name__ == "__main__":
    main()
