"""mini-sd's UNet and text encoder as they are trained: their shapes, and how they start from the bundled weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.common import MODELS, Preset
from training.group_norm import use_channels_last_group_norm
from training.naming import NameEncoder
from training.tokenizer import MAX_LENGTH

NAMES_FILE = Path(__file__).with_name("names.safetensors")


def build_text_encoder(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.text_hidden,
        intermediate_size=3 * preset.text_hidden,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=preset.text_hidden,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    nn.init.normal_(model.embeddings.token_embedding.weight, std=0.4 / preset.text_hidden**0.5)
    nn.init.normal_(model.embeddings.position_embedding.weight, std=0.1 / preset.text_hidden**0.5)
    return model


def build_unet(preset: Preset) -> UNet2DConditionModel:
    """Convolutions at 16 x 16, attention to the words from 8 x 8 down: half the cost of attention at every size."""
    deeper = len(preset.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=preset.unet_channels,
        layers_per_block=preset.unet_layers,
        cross_attention_dim=preset.text_hidden,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        norm_num_groups=32,
    )


class MiniSD(nn.Module):
    """What is trained together: UNet, text encoder and the network that makes name vectors."""

    def __init__(self, preset: Preset, tokenizer: CLIPTokenizer, features: list[str]) -> None:
        super().__init__()
        self.unet, self.text_encoder = build_unet(preset), build_text_encoder(preset, tokenizer)
        self.names = NameEncoder(features, preset.text_hidden)
        # On CPU two plain matrix products are faster than the fused attention for so few tokens.
        self.unet.set_attn_processor(AttnProcessor())
        use_channels_last_group_norm(self.unet)

    def encode(self, ids: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
        """Hidden states (B, T, D) of token ids (B, T), with each row's name vector (B, D) where `slots` is true."""
        embeds = self.text_encoder.embeddings.token_embedding(ids)
        embeds = torch.where(slots[..., None], vectors[:, None].to(embeds.dtype), embeds)
        hidden = self.text_encoder.embeddings(inputs_embeds=embeds)
        hidden = self.text_encoder.encoder(
            inputs_embeds=hidden, attention_mask=None, is_causal=True
        ).last_hidden_state
        return self.text_encoder.final_layer_norm(hidden)


@torch.no_grad()
def restore_shipped(model: MiniSD) -> None:
    """Load the bundled weights; tokens that the vocabulary gained since keep the rows that they have here."""
    unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet").float()
    model.unet.load_state_dict(unet.state_dict())
    shipped = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder", torch_dtype=torch.float32)
    weights = shipped.state_dict()
    (name,) = (name for name in weights if name.endswith("token_embedding.weight"))
    gained = model.text_encoder.state_dict()[name][len(weights[name]) :]
    model.text_encoder.load_state_dict({**weights, name: torch.cat([weights[name], gained])})
    model.names.restore(NAMES_FILE)
