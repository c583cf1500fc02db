"""Tiny models of flow matching: Stable Diffusion 3, Flux.1, Sana and Flux.2 Klein, of the real classes with random
weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.support.tiny import MAX_TOKENS, RESOLUTION, WORDS, bytes_as_letters, text_config, tokenizer
from textinv_ray.inversion.families.flux import Flux
from textinv_ray.inversion.families.flux2_klein import LAYERS, Flux2Klein
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.sana import INSTRUCTION, Sana
from textinv_ray.inversion.families.sd3 import StableDiffusion3


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


CHAT = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if not enable_thinking %}<think>

</think>

{% endif %}{%- endif -%}"""
"""What Qwen 3's template makes of what a user says."""
QWEN_TOKENS = 64
"""That a prompt may have with the chat around it."""


def qwen_tokenizer() -> Qwen2TokenizerFast:
    """Knows WORDS as one token each behind a space, the chat's words, all else by bytes."""
    vocabulary = list(bytes_as_letters())
    merges: dict[tuple[str, str], None] = {}
    for word in [f"Ġ{word}" for word in WORDS] + ["user", "assistant", "think", "ĊĊ"]:
        built = word[0]
        for letter in word[1:]:
            merges[built, letter] = None
            built += letter
            vocabulary.append(built)
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokens = Qwen2TokenizerFast(vocab=ids, merges=list(merges), model_max_length=QWEN_TOKENS)
    tokens.add_tokens(["<|im_start|>", "<|im_end|>", "<think>", "</think>"], special_tokens=True)
    tokens.chat_template = CHAT
    return tokens


def qwen(tokens: Qwen2TokenizerFast, dim: int) -> Qwen3ForCausalLM:
    """With two layers more than are read, and a table that is larger than the vocabulary."""
    config = Qwen3Config(
        vocab_size=len(tokens) + 8,
        hidden_size=dim,
        intermediate_size=dim,
        num_hidden_layers=LAYERS[-1] + 2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        pad_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.get_input_embeddings().weight.data.normal_(std=0.1)
    return model


def save_flux2_klein(folder: Path, *, distilled: bool = False) -> Path:
    """A Flux2KleinPipeline folder: 32 x 32 pixels, 8 x 8 latents of 4 channels as the transformer sees them."""
    torch.manual_seed(0)
    tokens = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=1,
        norm_num_groups=4,
        sample_size=2 * RESOLUTION,
    )
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=qwen(tokens, 16),
        tokenizer=tokens,
        transformer=spread_out(transformer),
        is_distilled=distilled,
    ).save_pretrained(folder)
    return folder


def load_flux2_klein(folder: Path) -> Flux2Klein:
    """The Flux.2 Klein model of a folder in float32 on the CPU."""
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    assert isinstance(backbone, Flux2Klein)
    return backbone


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
