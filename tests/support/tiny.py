"""Models of the real classes and file formats with random weights, small enough for unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion.families.flux import Flux
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.sana import INSTRUCTION, Sana
from textinv_ray.inversion.families.sd3 import StableDiffusion3
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


def tokenizer() -> CLIPTokenizer:
    """Knows WORDS as one token each, everything else by bytes."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
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


def t5_tokenizer() -> T5TokenizerFast:
    """Knows WORDS as one token each behind a space, printable ASCII by letters."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocabulary += [(f"▁{word}", -4.0 - 0.01 * len(word)) for word in WORDS if word.isalpha()]
    vocabulary += [(chr(code), -9.0) for code in range(ord("!"), ord("~") + 1)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=2, model_max_length=MAX_TOKENS)


def t5(tokens: T5TokenizerFast, dim: int) -> T5EncoderModel:
    """An encoder of states (L, dim), with a table that is larger than the vocabulary, as T5-XXL's."""
    config = T5Config(
        vocab_size=len(tokens) + 8,
        d_model=dim,
        d_kv=dim // 2,
        d_ff=2 * dim,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    model = T5EncoderModel(config)
    model.get_input_embeddings().weight.data.normal_(std=0.1)
    return model


def clip_encoder(kind: type[CLIPTextModel], tokens: CLIPTokenizer, hidden_size: int) -> CLIPTextModel:
    """With `eos_token_id: 2`, as published configurations say."""
    config = text_config(tokens, hidden_size)
    config.eos_token_id = 2
    encoder = kind(config)
    encoder.get_input_embeddings().weight.data.normal_(std=0.1)
    return encoder


def flow_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def save_stable_diffusion_3(folder: Path, *, with_t5: bool = True) -> Path:
    """A StableDiffusion3Pipeline folder: 16 x 16 pixels, 8 x 8 latents, with T5 or without."""
    torch.manual_seed(0)
    tokens, tokens_2, tokens_3 = tokenizer(), tokenizer(), t5_tokenizer()
    tokens_2.pad_token = "!"
    transformer = SD3Transformer2DModel(
        sample_size=RESOLUTION // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=80,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        transformer=spread_out(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=clip_encoder(CLIPTextModelWithProjection, tokens, 32),
        tokenizer=tokens,
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection, tokens_2, 40),
        tokenizer_2=tokens_2,
        text_encoder_3=t5(tokens_3, 80) if with_t5 else None,
        tokenizer_3=tokens_3 if with_t5 else None,
    ).save_pretrained(folder)
    return folder


def spread_out(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights large enough that inputs matter: a fresh transformer's gates are 0."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def save_flux(folder: Path, *, guided: bool = True) -> Path:
    """A FluxPipeline folder: 16 x 16 pixels, 8 x 8 latents. guided: as dev, else as schnell."""
    torch.manual_seed(0)
    tokens, tokens_2 = tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        guidance_embeds=guided,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided)
    FluxPipeline(
        transformer=spread_out(transformer),
        scheduler=scheduler,
        vae=flow_vae(),
        text_encoder=clip_encoder(CLIPTextModel, tokens, 32),
        tokenizer=tokens,
        text_encoder_2=t5(tokens_2, 24),
        tokenizer_2=tokens_2,
    ).save_pretrained(folder)
    return folder


def gemma_tokenizer() -> GemmaTokenizer:
    """Knows WORDS and those of Sana's instruction as one token each behind a space, all else by bytes."""
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary += [f"<0x{byte:02X}>" for byte in range(256)] + ["▁"]
    vocabulary += [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys([*WORDS, *INSTRUCTION.lower().split(), *INSTRUCTION.split()]):
        built = "▁"
        for letter in word:
            merges[built, letter] = None
            built += letter
            vocabulary.append(built)
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokens = GemmaTokenizer(vocab=ids, merges=list(merges), model_max_length=4096)
    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return tokens


def gemma(tokens: GemmaTokenizer, dim: int) -> Gemma2Model:
    """An encoder of states (L, dim)."""
    config = Gemma2Config(
        vocab_size=len(tokens) + 8,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=4096,
        max_position_embeddings=4096,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    model = Gemma2Model(config)
    model.get_input_embeddings().weight.data.normal_(std=0.1)
    return model


def save_sana(folder: Path) -> Path:
    """A SanaPipeline folder: 32 x 32 pixels, the least that the pipeline takes, and 8 x 8 latents."""
    torch.manual_seed(0)
    tokens = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
    )
    SanaPipeline(
        tokenizer=tokens,
        text_encoder=gemma(tokens, 24),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(4, 8, 8),
            decoder_block_out_channels=(4, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
            scaling_factor=0.41407,
        ),
        transformer=spread_out(transformer),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        ),
    ).save_pretrained(folder)
    return folder


def load_flux(folder: Path) -> Flux:
    """The Flux.1 model of a folder in float32 on the CPU."""
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    assert isinstance(backbone, Flux)
    return backbone


def load_sana(folder: Path) -> Sana:
    """The Sana model of a folder in float32 on the CPU."""
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    assert isinstance(backbone, Sana)
    return backbone


def load_sd3(folder: Path) -> StableDiffusion3:
    """The Stable Diffusion 3 model of a folder in float32 on the CPU."""
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    assert isinstance(backbone, StableDiffusion3)
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
