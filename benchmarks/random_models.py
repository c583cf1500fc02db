"""Models of Stable Diffusion's sizes with random weights: speed doesn't depend on their values.

The VAE isn't part of a step (latents are cached), so one with few channels and the right latents stands in for it.
SDXL's second text encoder and its size conditioning are left out, as this project doesn't run SDXL: its UNet
attends to the larger of its two text encoders.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.precision import choose_device, choose_dtype
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.model_files.places import BUNDLED

SIZES: dict[str, dict[str, Any]] = {
    # The configurations of stable-diffusion-v1-5 and of stable-diffusion-xl-base-1.0.
    "sd15": {
        "unet": {
            "sample_size": 64,
            "cross_attention_dim": 768,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,
        },
        "text": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layers": 12,
            "heads": 12,
            "act": "quick_gelu",
        },
    },
    "sdxl": {
        "unet": {
            "sample_size": 128,
            "cross_attention_dim": 1280,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
        },
        "text": {"hidden_size": 1280, "intermediate_size": 5120, "layers": 32, "heads": 20, "act": "gelu"},
    },
    # For tests of the benchmark itself.
    "tiny": {
        "unet": {
            "sample_size": 8,
            "cross_attention_dim": 32,
            "block_out_channels": (32, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 4,
            "layers_per_block": 1,
        },
        "text": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "act": "gelu"},
    },
}


def load(name: str, dtype: str) -> Backbone:
    """A frozen model of one of SIZES on the GPU, if there is one; else on the CPU."""
    device = choose_device("auto")
    precision, before = choose_dtype(dtype, device), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(precision)
    try:
        with torch.device(device):  # made there: a copy would take as much memory again
            return _make(**SIZES[name])
    finally:
        torch.set_default_dtype(before)


def _make(unet: dict[str, Any], text: dict[str, Any]) -> Backbone:
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "mini-sd" / "tokenizer")
    tokenizer.model_max_length = 77
    config = CLIPTextConfig(
        vocab_size=49408,
        max_position_embeddings=77,
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        hidden_act=text["act"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(config),
        unet=UNet2DConditionModel(**unet),
        vae=AutoencoderKL(
            block_out_channels=(32,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
    )
