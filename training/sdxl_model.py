"""mini-sdxl as it is trained: mini-sd's UNet with the inputs of SDXL, and how it starts from the bundled weights.

Podell et al. 2023: two frozen text encoders whose penultimate hidden states stand side by side, the second's projected
pooled output, and six numbers that say how large a picture was and how it was cropped. Here the first encoder is
mini-sd's, the second mini-clip's text tower.

mini-sd's UNet was trained on the first encoder's last hidden state after its final layer norm; SDXL reads the
penultimate one, before any norm. The norm goes into the UNet's matrices that read the states: its gain, bias and
centring exactly, and for the division by a token's own standard deviation the mean over captions. That costs little:
on held-out characters a loss of 0.1183 after 0.1159 (0.1175 without the last layer, the rest for the mean deviation).
An encoder with a fourth layer that does nothing, so that [-2] is the state that the UNet knows, would begin at 0.1201,
because deviations differ more there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from training import captions as characters
from training.batches import NamedWords
from training.common import MODELS, Data, Preset
from training.model import MiniSD, build_unet, bundled_vae
from training.naming import NAMES_FILE, WORD_NORM, NameEncoder
from training.tokenizer import save as save_tokenizer

SECOND_WIDTH = 128
"""Of mini-clip's text tower, and of its projection."""
SECOND_NORM = 0.22
"""Median norm of mini-clip's embeddings."""
TIME_WIDTH = 32
"""Sinusoids for each of the six numbers."""
STATES_RATE = 0.5
"""Of the learning rate, for the matrices that read hidden states: those are several times larger without a norm."""
ADDED_RATE = 3.0
"""For what reads the pooled output and the sizes, and is new."""
CONDITIONED = ("attentions", "time_emb", "add_embedding")
"""In the names of the UNet's trained parts."""
ALONE_EVERY = 4
"""One caption in so many."""
MISTAKEN_END = 2
"""What SDXL's released configurations say for the end token. With it transformers pools at the largest id."""


class TwoNames(NameEncoder):
    """Word vectors (B, D1 + D2), each encoder's part with the norm of its embeddings."""

    norms = (WORD_NORM, SECOND_NORM)

    def __init__(self, features: Sequence[str], widths: tuple[int, int]) -> None:
        super().__init__(features, sum(widths))
        self.widths = widths

    def forward(self, flat: Tensor, offsets: Tensor, colours: Tensor) -> Tensor:
        with torch.autocast(colours.device.type, enabled=False):
            parts = self.raw(flat, offsets, colours).split(self.widths, 1)
            return torch.cat([F.normalize(p, dim=-1) * n for p, n in zip(parts, self.norms, strict=True)], 1)


class MiniSDXL(MiniSD):
    """What is trained: the parts of the UNet that conditions reach first, and the network that makes name vectors.

    The text encoders are frozen, and the convolutions: they draw as mini-sd's do, and a step without their gradients
    takes a fifth less time (1.04 s in place of 1.33 s on one core).
    """

    name = "mini-sdxl"
    names_file = None

    def __init__(self, preset: Preset, tokenizer: CLIPTokenizer, features: list[str]) -> None:
        super().__init__(preset, tokenizer, features)
        self.text_encoder_2 = build_second_encoder(tokenizer)
        for encoder in (self.text_encoder, self.text_encoder_2):
            encoder.requires_grad_(False)
        self.unet = build_unet(
            preset,
            cross_attention_dim=preset.text_hidden + SECOND_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=SECOND_WIDTH + 6 * TIME_WIDTH,
        )
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(any(part in name for part in CONDITIONED))
        self.names: TwoNames = TwoNames(features, (preset.text_hidden, SECOND_WIDTH))
        self.end = int(tokenizer.eos_token_id)
        self.deviation = 1.0
        """That the first encoder's states are taken to have by the matrices that the UNet begins with."""

    def groups(self) -> list[tuple[Iterable[nn.Parameter], float]]:
        reading, added = (
            readers(self.unet),
            dict(self.unet.add_embedding.named_parameters(prefix="add_embedding")),
        )
        trained = {name: weight for name, weight in self.unet.named_parameters() if weight.requires_grad}
        others = [weight for name, weight in trained.items() if name not in reading.keys() | added.keys()]
        return [
            (others, 1.0),
            (reading.values(), STATES_RATE),
            (added.values(), ADDED_RATE),
            (self.names.parameters(), 1.0),
        ]

    def begin(self, tokenizer: CLIPTokenizer, data: Data) -> str:
        captions = [characters.full_caption(row) for row in data.rows[:256]]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        restore_from_mini_sd(self, ids.to(self.unet.device))
        return "mini-sd and mini-clip"

    def predict(self, noisy: Tensor, timesteps: Tensor, named: NamedWords, sizes: Tensor) -> Tensor:
        """The noise in (B, 4, 16, 16) at `timesteps` (B,), of captions with named words and `sizes` (B, 6).

        In training mode every other caption that is left out is zeros, as in SDXL's pipeline; the rest is what the
        encoders make of "". And one caption in ALONE_EVERY reaches the UNet by the second encoder alone: beside the
        first, which the UNet knows already, it would be learned slowly.
        """
        states, pooled = self.condition(named)
        if self.training:
            ids, place = named[0], torch.arange(len(states), device=states.device)
            zeros = (ids[:, 1] == self.end) & (place % 2 == 0)
            alone = place % ALONE_EVERY == ALONE_EVERY - 1
            first, second = states.split(self.names.widths, 2)
            first = first.masked_fill((zeros | alone)[:, None, None], 0)
            states = torch.cat([first, second.masked_fill(zeros[:, None, None], 0)], 2)
            pooled = pooled.masked_fill(zeros[:, None], 0)
        added = {"text_embeds": pooled, "time_ids": sizes}
        return self.unet(noisy, timesteps, states, added_cond_kwargs=added).sample

    def condition(self, named: NamedWords) -> tuple[Tensor, Tensor]:
        """Both encoders' penultimate states (B, T, D), and the second's projection of its state at the end token."""
        ids, slots, vectors = named
        parts = vectors.split(self.names.widths, 1)
        first, _ = run(self.text_encoder, ids, slots, parts[0])
        second, last = run(self.text_encoder_2.text_model, ids, slots, parts[1])
        ends = (ids == self.end).int().argmax(1)
        pooled = self.text_encoder_2.text_projection(last[torch.arange(len(ids), device=ids.device), ends])
        return torch.cat([first, second], 2), pooled

    def after_step(self) -> None:
        """The tables are frozen."""

    def write_rows(self, ids: Tensor, vectors: Tensor) -> None:
        """Of the second encoder. The first one's file stays mini-sd's to the bit, and is in the repository once."""
        _, second = vectors.split(self.names.widths, 1)
        self.text_encoder_2.text_model.embeddings.token_embedding.weight[ids] = second

    def parts(self) -> dict[str, nn.Module]:
        return {**super().parts(), "text_encoder_2": self.text_encoder_2}

    def pipeline(self, tokenizer: CLIPTokenizer) -> DiffusionPipeline:
        return StableDiffusionXLPipeline(
            vae=bundled_vae(),
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=self.unet,
            scheduler=DDPMScheduler(**self.schedule),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )

    def export(self, tokenizer: CLIPTokenizer, data: Data, folder: Path, names: Path | None) -> None:
        super().export(tokenizer, data, folder, names)
        # Saved again by another version of transformers, the same weights would be another file.
        shutil.copytree(MODELS / "mini-sd" / "text_encoder", folder / "text_encoder", dirs_exist_ok=True)
        for part in ("tokenizer", "tokenizer_2"):
            save_tokenizer(tokenizer, folder / part)


def build_second_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Of the shape of mini-clip's text tower."""
    config = CLIPTextConfig.from_pretrained(MODELS / "mini-clip")
    config.vocab_size, config.eos_token_id = len(tokenizer), MISTAKEN_END
    return CLIPTextModelWithProjection(config)


def run(encoder: CLIPTextModel, ids: Tensor, slots: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate states and normed last states, (B, T, D) each, of ids (B, T) with `vectors` (B, D) in the slots."""
    embeds = encoder.embeddings.token_embedding(ids)
    embeds = torch.where(slots[..., None], vectors[:, None].to(embeds.dtype), embeds)
    hidden = encoder.embeddings(inputs_embeds=embeds)
    penultimate = hidden
    for layer in encoder.encoder.layers:
        penultimate, hidden = hidden, layer(hidden, None, is_causal=True)
    return penultimate, encoder.final_layer_norm(hidden)


def readers(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The matrices that read hidden states, by name."""
    return {
        name: weight
        for name, weight in unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


@torch.no_grad()
def restore_from_mini_sd(model: MiniSDXL, ids: Tensor) -> None:
    """Load the bundled weights, the new inputs at zero. ids: captions (n, T), for the deviation that the norm had."""
    load_text_encoder(model.text_encoder, CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder"))
    load_text_encoder(model.text_encoder_2, CLIPModel.from_pretrained(MODELS / "mini-clip"))
    no_slots = torch.zeros_like(ids, dtype=torch.bool)
    states, _ = run(model.text_encoder, ids, no_slots, torch.zeros(len(ids), 1, device=ids.device))
    model.deviation = float(1 / (1 / states.std(-1, correction=0)).mean())

    weights = UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet").float().state_dict()
    norm = model.text_encoder.final_layer_norm
    for name, wide in readers(model.unet).items():
        known = weights[name]
        if name.endswith("to_v.weight"):
            out = name.removesuffix("to_v.weight") + "to_out.0"
            # Attention weights add up to one; the keys' bias is the same for all tokens, and drops out.
            weights[f"{out}.bias"] += weights[f"{out}.weight"] @ (known @ norm.bias.to(known))
        gained = known * norm.weight.to(known) / model.deviation
        gained -= gained.mean(1, keepdim=True)
        weights[name] = torch.cat([gained, known.new_zeros(len(known), wide.shape[1] - known.shape[1])], 1)
    last = model.unet.add_embedding.linear_2
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    model.unet.load_state_dict({**model.unet.state_dict(), **weights})
    model.names.restore(NAMES_FILE)


def load_text_encoder(encoder: nn.Module, shipped: nn.Module) -> None:
    """Load its weights from `shipped`; tokens that the vocabulary gained since keep what they have here."""
    known = shipped.float().state_dict()
    for name, weight in encoder.state_dict().items():
        weight[: len(known[name])] = known[name]
