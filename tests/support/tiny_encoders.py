"""Encoders of the real classes with random weights, each with its published kind of processor, at 16 pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

SIDE = 16
_SQUARE = {"height": SIDE, "width": SIDE}
_SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_VISION = {**_SHAPE, "image_size": SIDE, "patch_size": 8}
_TEXT_LENGTH = 12


def save_vit(folder: Path, seed: int = 2) -> Path:
    """As `facebook/dino-vits16`: a ViTModel whose pictures are squeezed to squares."""
    torch.manual_seed(seed)
    ViTModel(ViTConfig(**_VISION), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size=_SQUARE).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    """As `facebook/dinov2-small`: pictures are resized, and the middle is cut out."""
    torch.manual_seed(2)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=8, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 18}, crop_size=_SQUARE).save_pretrained(folder)
    return folder


def save_dinov3(folder: Path) -> Path:
    """As `facebook/dinov3-vits16-pretrain-lvd1689m`: register tokens beside the class token."""
    torch.manual_seed(2)
    DINOv3ViTModel(DINOv3ViTConfig(**_VISION, num_register_tokens=2)).save_pretrained(folder)
    ViTImageProcessorPil(size=_SQUARE).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """As `google/siglip2-base-patch16-224`, which is a SiglipModel."""
    torch.manual_seed(2)
    tokens = _tokenizer()
    config = SiglipConfig(text_config=_text(tokens), vision_config=_VISION)
    SiglipModel(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    SiglipImageProcessorPil(size=_SQUARE, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def save_siglip2(folder: Path) -> Path:
    """As `google/siglip2-base-patch16-naflex`: pictures keep their shape, as patches with a mask."""
    torch.manual_seed(2)
    tokens = _tokenizer()
    vision = {**_SHAPE, "num_patches": 4, "patch_size": 8}
    Siglip2Model(Siglip2Config(text_config=_text(tokens), vision_config=vision)).save_pretrained(folder)
    tokens.save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=6).save_pretrained(folder)
    return folder


def _text(tokens: Siglip2Tokenizer) -> dict[str, int]:
    return {**_SHAPE, "vocab_size": len(tokens), "max_position_embeddings": _TEXT_LENGTH}


def _tokenizer() -> Siglip2Tokenizer:
    """Knows small letters; everything else by bytes."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    entries = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklmnopqrstuvwxyz", "▁"]
    return Siglip2Tokenizer(
        vocab={token: index for index, token in enumerate(entries)}, merges=[], model_max_length=_TEXT_LENGTH
    )
