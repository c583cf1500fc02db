"""mini-sd's UNet and text encoder as they are trained: their shapes, and how they start from the bundled weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.batches import NamedWords
from training.common import BUILD, MODELS, Data, Preset, device, save_half
from training.group_norm import use_channels_last_group_norm
from training.naming import NAMES_FILE, NameEncoder, limit_norms
from training.tokenizer import MAX_LENGTH

TEXT_FILE = BUILD / "text" / "text.safetensors"
"""What `training.text` wrote: where the text encoder and the names start from."""
TEXT_RATE = 0.3
"""Of the UNet's learning rate. With all of it, the text encoder's first layer grew one direction, the same for all
tokens, to hundreds of times their norm, and hidden states told words apart by a tenth of their length only."""
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}
SIDE = 64
"""Of the pictures, in pixels."""


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


def build_unet(preset: Preset, **inputs: Any) -> UNet2DConditionModel:
    """Convolutions at 16 x 16, attention to the words from 8 x 8 down: half the cost of attention at every size.

    `inputs` are settings of what it reads beside the latents; without them, the text encoder's states.
    """
    deeper = len(preset.unet_channels) - 1
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=preset.unet_channels,
        layers_per_block=preset.unet_layers,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        norm_num_groups=32,
        **{"cross_attention_dim": preset.text_hidden, **inputs},
    )
    # On CPU two plain matrix products are faster than the fused attention for so few tokens.
    unet.set_attn_processor(AttnProcessor())
    use_channels_last_group_norm(unet)
    return unet


class MiniSD(nn.Module):
    """What is trained together: UNet, text encoder and the network that makes name vectors."""

    name = "mini-sd"
    """Of the bundled model's folder."""
    names_file: Path | None = NAMES_FILE

    def __init__(self, preset: Preset, tokenizer: CLIPTokenizer, features: list[str]) -> None:
        super().__init__()
        self.unet, self.text_encoder = build_unet(preset), build_text_encoder(preset, tokenizer)
        self.names = NameEncoder(features, preset.text_hidden)
        self.schedule = dict(SCHEDULE)
        """What its pipeline's scheduler is made of."""

    @property
    def width(self) -> int:
        """D, the length of a word's vector."""
        return int(self.unet.config.cross_attention_dim)

    def groups(self) -> list[tuple[Iterable[nn.Parameter], float]]:
        """What is trained, and the share of the learning rate that it has."""
        return [
            (self.unet.parameters(), 1.0),
            (self.text_encoder.parameters(), TEXT_RATE),
            (self.names.parameters(), TEXT_RATE),
        ]

    def begin(self, tokenizer: CLIPTokenizer, data: Data) -> str:
        """Load what a first run goes on from; says what that is, nothing if there is nothing."""
        if NAMES_FILE.exists() and (MODELS / "mini-sd" / "unet").exists():
            restore_shipped(self)
            return "the shipped weights"
        if TEXT_FILE.exists():
            self.load_state_dict(load_file(TEXT_FILE), strict=False)
            return str(TEXT_FILE)
        return ""

    def predict(self, noisy: Tensor, timesteps: Tensor, named: NamedWords, sizes: Tensor) -> Tensor:
        """What `schedule` says that is predicted, of (B, 4, 16, 16) at `timesteps` (B,) and captions with named words.

        Stable Diffusion reads no `sizes` (B, 6), see `whole_pictures`.
        """
        return self.unet(noisy, timesteps, self.encode(*named)).sample

    def after_step(self) -> None:
        table = self.text_encoder.embeddings.token_embedding.weight
        if table.requires_grad:
            limit_norms(table.data)

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
    def write_names(self, tokenizer: CLIPTokenizer, data: Data) -> None:
        """Write the vector of every named identity into its token's row."""
        named = {row["name"]: row for row in data.rows if row.get("name")}
        features = [row["features"] for row in named.values()]
        vectors = self.names(*self.names.inputs(features, [row["rgb"] for row in named.values()]))
        self.write_rows(
            torch.tensor([tokenizer(name).input_ids[1] for name in named]).to(vectors.device), vectors
        )

    def write_rows(self, ids: Tensor, vectors: Tensor) -> None:
        """Make `vectors` (n, D) the embeddings of tokens (n,)."""
        self.text_encoder.embeddings.token_embedding.weight[ids] = vectors

    def parts(self) -> dict[str, nn.Module]:
        """The pipeline's parts that are written from here, by their folders."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def pipeline(self, tokenizer: CLIPTokenizer) -> DiffusionPipeline:
        return StableDiffusionPipeline(
            bundled_vae(),
            self.text_encoder,
            tokenizer,
            self.unet,
            DDPMScheduler(**self.schedule),
            None,
            None,
            None,
            False,
        )

    def export(self, tokenizer: CLIPTokenizer, data: Data, folder: Path, names: Path | None) -> None:
        """Write the whole pipeline, float16, as `from_pretrained` of its class reads it."""
        learned = any(weight.requires_grad for weight in self.names.parameters())
        if learned:  # names that weren't trained stand in the table already
            self.write_names(tokenizer, data)
        whole = self.pipeline(tokenizer)
        whole.vae.half()
        whole.save_pretrained(folder)
        for part, module in {"vae": whole.vae, **self.parts()}.items():
            save_half(module, folder / part)
        if names and learned:
            self.names.save(names)


def bundled_vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").to(device())


def whole_pictures(count: int) -> Tensor:
    """SDXL's time ids (count, 6) of pictures as large as they are learned, and not cropped.

    Original height and width, top and left of the crop, height and width that the model draws; in pixels.
    """
    return torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE]).float().expand(count, 6)


@torch.no_grad()
def restore_shipped(model: MiniSD) -> None:
    """Load the bundled weights; tokens that the vocabulary gained since keep the rows that they have here."""
    unet = UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet").float()
    model.unet.load_state_dict(unet.state_dict())
    shipped = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder", torch_dtype=torch.float32)
    weights = shipped.state_dict()
    (name,) = (name for name in weights if name.endswith("token_embedding.weight"))
    gained = model.text_encoder.state_dict()[name][len(weights[name]) :].cpu()
    model.text_encoder.load_state_dict({**weights, name: torch.cat([weights[name], gained])})
    model.names.restore(NAMES_FILE)
