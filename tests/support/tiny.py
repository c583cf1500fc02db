"""Models of the real classes and file formats with random weights, small enough for unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion

RESOLUTION = 16
LATENT_SHAPE = (4, 8, 8)
MAX_TOKENS = 24
WORDS = """
a an the of in on my one photo picture rendering painting drawing style character cat dog house woman man
with red blue green background beach oil good close clean dark ' , . s t ! < > 0 1 2
""".split()  # noqa: SIM905


def load_sd(folder: Path) -> StableDiffusion:
    """The Stable Diffusion model of a folder in float32 on the CPU."""
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    assert isinstance(backbone, StableDiffusion)
    return backbone


def bytes_as_letters() -> list[str]:
    """The letters that stand for bytes in byte-level vocabularies."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def tokenizer() -> CLIPTokenizer:
    """Knows WORDS as one token each, everything else by bytes."""
    letters = bytes_as_letters()
    vocabulary = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        built = parts[0]
        for part in parts[1:]:
            merges[built, part] = None
            built += part
            vocabulary[built] = None
    vocabulary |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    ids = {token: index for index, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=list(merges), model_max_length=MAX_TOKENS)


def text_config(tokens: CLIPTokenizer, hidden_size: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def save_stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A StableDiffusionPipeline folder: 16 x 16 pixels, 8 x 8 latents."""
    torch.manual_seed(0)
    tokens = tokenizer()
    text_encoder = CLIPTextModel(text_config(tokens))
    text_encoder.get_input_embeddings().weight.data.normal_(std=0.1)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=RESOLUTION,
        ),
        text_encoder=text_encoder,
        tokenizer=tokens,
        unet=UNet2DConditionModel(
            sample_size=RESOLUTION // 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_stable_diffusion_xl(folder: Path, prediction_type: str = "epsilon", **options: bool) -> Path:
    """A StableDiffusionXLPipeline folder: 16 x 16 pixels, 8 x 8 latents.

    As in published configurations, `eos_token_id` of the text encoders is 2. options: of the pipeline and the
    scheduler.
    """
    torch.manual_seed(0)
    tokens, tokens_2 = tokenizer(), tokenizer()
    tokens_2.pad_token = "!"
    first, second = text_config(tokens), text_config(tokens_2, 40)
    first.eos_token_id = second.eos_token_id = 2
    encoders = CLIPTextModel(first), CLIPTextModelWithProjection(second)
    for encoder in encoders:
        encoder.get_input_embeddings().weight.data.normal_(std=0.1)
    zero_snr = options.pop("rescale_betas_zero_snr", False)
    StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=RESOLUTION,
            scaling_factor=0.13025,
        ),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokens,
        tokenizer_2=tokens_2,
        unet=UNet2DConditionModel(
            sample_size=RESOLUTION // 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=72,
            attention_head_dim=2,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
            timestep_spacing="trailing" if zero_snr else "leading",
            prediction_type=prediction_type,
            rescale_betas_zero_snr=zero_snr,
        ),
        **options,
    ).save_pretrained(folder)
    return folder


def load_sdxl(folder: Path) -> StableDiffusionXL:
    """The SDXL model of a folder in float32 on the CPU."""
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    assert isinstance(backbone, StableDiffusionXL)
    return backbone


def save_clip(folder: Path) -> Path:
    """A CLIPModel folder with its processor."""
    torch.manual_seed(1)
    tokens = tokenizer()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": RESOLUTION,
        "patch_size": 8,
        "projection_dim": 16,
    }
    config = CLIPConfig(
        text_config=text_config(tokens, 16).to_dict(), vision_config=vision, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    size = {"height": RESOLUTION, "width": RESOLUTION}
    CLIPImageProcessorPil(size={"shortest_edge": RESOLUTION}, crop_size=size).save_pretrained(folder)
    return folder


def concept(index: int = 0, **changes: Any) -> Concept:
    """A concept of three random pictures that fits the models here; `changes` are fields of Concept."""
    pixels = np.random.default_rng(index).integers(0, 256, (3, 1, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    fields: dict[str, Any] = {
        "concept_id": f"concept-{index}",
        "placeholder_token": f"<c{index}>",
        "initializer_token": "cat",
        "learnable_property": "object",
        "num_vectors": 1,
        "steps": 4,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "seed": index,
        "templates": ("a photo of {}", "a close photo of the {}", "my {}"),
        "captions": (),
        "prompts": ("a photo of {}",),
        "edit_prompts": ("{} on the beach", "a drawing of {}"),
        "tags": {},
        "images": pixels,
        "image_uris": ("0.png", "1.png", "2.png"),
        "fingerprint": f"fingerprint-{index}",
        "row_fingerprint": f"row-{index}",
        "state_fingerprint": f"state-{index}",
    }
    return Concept(**{**fields, **changes})
