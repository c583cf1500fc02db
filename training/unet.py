"""Train mini-sd's text encoder and UNet together on the cached latents, and write the pipeline.

    torchrun --nproc-per-node N -m training.unet [--preset small|large] [--steps N] [--hours H]

The objective is the noise prediction of latent diffusion (Rombach et al. 2022, eq. 2), a caption dropped in one case of
ten for classifier-free guidance (Ho & Salimans 2022). Errors are weighted as errors of the predicted image by the
signal-to-noise ratio clamped to [1, 5]: from above as min-SNR does (Hang et al. 2023), from below because in 16 x 16
latents even the noisiest timesteps show colours: without it the model reads them there instead of in the text.
Goes on from its checkpoint, or from the shipped weights when there is none.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import captions as characters
from training.common import (
    BUILD,
    MODELS,
    PRESETS,
    Averaged,
    Checkpoint,
    Data,
    Preset,
    Progress,
    Schedule,
    Team,
    autocast,
    batches,
    default_preset,
    device,
    learning_rate,
    save_grid,
    save_half,
)
from training.group_norm import use_channels_last_group_norm
from training.naming import NameEncoder, jitter, limit_norms
from training.tokenizer import MAX_LENGTH
from training.tokenizer import load as load_tokenizer

BATCH = 32
PEAK_RATE = 4e-4
TEXT_RATE = 0.3
"""Of the UNet's learning rate. With all of it, the text encoder's first layer grew one direction, the same for all
tokens, to hundreds of times their norm, and hidden states told words apart by a tenth of their length only."""
AVERAGE = 0.997
FOLDER = BUILD / "unet"
TEXT_FILE = BUILD / "text" / "text.safetensors"
"""What `training.text` wrote: where the text encoder and the names start from."""
NAMES_FILE = Path(__file__).with_name("names.safetensors")
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}


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


def noise_loss(
    model: MiniSD,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas: Tensor,
    ids: Tensor,
    slots: Tensor,
    vectors: Tensor,
) -> Tensor:
    """Weighted mean squared error of the predicted noise; `alphas` is alpha-bar at each timestep, (B,)."""
    a = alphas[:, None, None, None]
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    with autocast():
        states = model.encode(ids, slots, vectors)
        predicted = model.unet(noisy, timesteps, states).sample
    snr = alphas / (1 - alphas)
    weight = (snr.clamp(1.0, 5.0) / snr).clamp(max=50.0)
    return (weight * (predicted.float() - noise).pow(2).mean((1, 2, 3))).mean()


class Captions:
    """Captions of rows, with the identity or the style named by the slot word in about half of them."""

    def __init__(self, data: Data, tokenizer: CLIPTokenizer, names: NameEncoder, team: Team) -> None:
        self.data, self.tokenizer, self.names, self.team = data, tokenizer, names, team
        self.slot_word = sorted({row["name"] for row in data.rows if row.get("name")})[0]
        self.slot_id = tokenizer(self.slot_word).input_ids[1]

    def text(self, row: dict[str, Any], rng: np.random.Generator) -> tuple[str, list[str], list[float]]:
        """A caption, and the features and colours that its slot word stands for."""
        effect, kind = row.get("effect"), rng.random()
        features, rgb = list(row["features"]), row["rgb"]
        if kind < 0.1:
            return "", features, rgb
        in_words = bool(effect) and rng.random() < 0.5
        if effect and not in_words:
            features = [*features, f"effect={effect}"]
        if kind < 0.25:
            features = [feature for feature in features if feature.startswith(("style=", "effect="))]
            caption, rgb = characters.caption(row, rng, style_name=self.slot_word), [0.5] * 9
        elif kind < 0.65:
            caption = characters.caption(row, rng, name=self.slot_word)
        else:
            caption, in_words = characters.caption(row, rng), bool(effect)
        return (f"{caption} {effect}" if in_words else caption), features, rgb

    def batch(self, indices: np.ndarray, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of this process's share: token ids (B, T), where the slot is (B, T), and the vectors for it (B, D)."""
        rng = np.random.default_rng((7, seed))
        drawn = self.team.share([self.text(self.data.rows[i], rng) for i in indices])
        texts, features, rgb = zip(*drawn, strict=True)
        ids = self.tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        ids = ids.to(device())
        vectors = self.names(*self.names.inputs(features, rgb))
        generator = torch.Generator().manual_seed(seed * self.team.size + self.team.rank)
        return ids, ids == self.slot_id, jitter(vectors, generator)


def all_features(data: Data) -> list[str]:
    """Every feature of an identity, and every effect, in a fixed order."""
    effects = {f"effect={row['effect']}" for row in data.rows if "effect" in row}
    return sorted({feature for row in data.rows for feature in row["features"]} | effects)


@torch.no_grad()
def write_names(model: MiniSD, tokenizer: CLIPTokenizer, data: Data) -> int:
    """Write the vector of every named identity into its token's row; returns how many."""
    named = {row["name"]: row for row in data.rows if row.get("name")}
    vectors = model.names(
        *model.names.inputs([r["features"] for r in named.values()], [r["rgb"] for r in named.values()])
    )
    ids = torch.tensor([tokenizer(name).input_ids[1] for name in named])
    model.text_encoder.embeddings.token_embedding.weight[ids.to(vectors.device)] = vectors
    return len(named)


def export(model: MiniSD, tokenizer: CLIPTokenizer, data: Data, folder: Path = MODELS / "mini-sd") -> None:
    """Write the whole pipeline, float16, as `StableDiffusionPipeline.from_pretrained` reads it."""
    write_names(model, tokenizer, data)
    whole = pipeline(model, tokenizer)
    whole.vae.half()
    whole.save_pretrained(folder)
    save_half(whole.vae, folder / "vae")
    save_half(model.unet, folder / "unet")
    save_half(model.text_encoder, folder / "text_encoder")
    model.names.save(NAMES_FILE)


def pipeline(model: MiniSD, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    vae = AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").to(device())
    scheduler = DDPMScheduler(**SCHEDULE)
    return StableDiffusionPipeline(
        vae, model.text_encoder, tokenizer, model.unet, scheduler, None, None, None, False
    )


@torch.no_grad()
def sample_grid(
    model: MiniSD, tokenizer: CLIPTokenizer, rows: list[dict[str, Any]], real: np.ndarray, path: Path
) -> None:
    """Held-out captions drawn by the model, each below the real image it was taken from."""
    pipe = pipeline(model, tokenizer)
    pipe.vae.float()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    captions = [characters.full_caption(row) for row in rows]
    generator = [torch.Generator().manual_seed(index) for index in range(len(rows))]
    with autocast():
        drawn = pipe(
            captions, num_inference_steps=20, guidance_scale=4.0, generator=generator, output_type="np"
        ).images
    drawn = (drawn * 255).round().astype(np.uint8)
    sheet = [part[start : start + 12] for start in range(0, len(rows), 12) for part in (real, drawn)]
    save_grid(path, np.concatenate(sheet), 12)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default=default_preset())
    parser.add_argument(
        "--steps", type=int, help="length of the run, the falling learning rate of its last fifth included"
    )
    parser.add_argument("--hours", type=float, default=1e9, help="be done, and ship, within this time")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    team = Team()
    schedule = Schedule(options.steps or preset.unet_steps, options.hours, team)

    torch.manual_seed(0)
    data, heldout = Data(BUILD / "drawings"), Data(BUILD / "drawings" / "heldout", effects=False)
    moments = torch.from_numpy(np.load(BUILD / "vae" / "moments.npy"))
    factor = AutoencoderKL.load_config(MODELS / "mini-sd" / "vae")["scaling_factor"]
    tokenizer = load_tokenizer()
    model = MiniSD(preset, tokenizer, all_features(data)).to(device())
    model.unet.to(memory_format=torch.channels_last)
    captions = Captions(data, tokenizer, model.names, team)
    parameters = list(model.parameters())
    groups = [
        {"params": list(part.parameters()), "ratio": ratio}
        for part, ratio in ((model.unet, 1.0), (model.text_encoder, TEXT_RATE), (model.names, TEXT_RATE))
    ]
    optimizer = torch.optim.AdamW(groups, PEAK_RATE, (0.9, 0.99), weight_decay=0.01, fused=True)
    average = Averaged(model, AVERAGE)
    checkpoint, progress = Checkpoint(FOLDER, model, optimizer, average), Progress(FOLDER, "unet")
    first = checkpoint.load()
    if first == 0 and NAMES_FILE.exists() and (MODELS / "mini-sd" / "unet").exists():
        restore_shipped(model)
        average = checkpoint.average = Averaged(model, AVERAGE)
        if team.leads:
            print("going on from the shipped weights", flush=True)
    elif first == 0 and TEXT_FILE.exists():
        model.load_state_dict(load_file(TEXT_FILE), strict=False)
        average = checkpoint.average = Averaged(model, AVERAGE)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device())
    table = model.text_encoder.embeddings.token_embedding.weight
    show = list(range(0, min(len(heldout), 960), 40))
    for step, indices in zip(itertools.count(first), batches(len(data), BATCH, 2, first), strict=False):
        for group in optimizer.param_groups:
            rate = learning_rate(step, schedule.progress(step), PEAK_RATE, cooldown=0.4)
            group["lr"] = group["ratio"] * rate
        draws = torch.Generator().manual_seed(step)
        mean, log_variance = moments[indices].float().chunk(2, 1)
        latents = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * torch.randn(mean.shape, generator=draws)
        noise = team.share(torch.randn(latents.shape, generator=draws))
        noise = noise.to(device(), memory_format=torch.channels_last)
        latents = team.share(latents * factor).to(device(), memory_format=torch.channels_last)
        # Spread evenly over a batch, which says more about the whole range than independent draws.
        spread = (torch.arange(len(indices)) + torch.rand(len(indices), generator=draws)) / len(indices)
        timesteps = team.share((spread * 1000).long()).to(device())
        ids, slots, vectors = captions.batch(indices, step)
        loss = noise_loss(model, latents, noise, timesteps, alphas[timesteps], ids, slots, vectors)
        loss.backward()
        team.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        limit_norms(table.data)
        average.update(model)
        last = schedule.progress(step + 1) >= 1
        if team.leads:
            progress.update(step + 1, loss, len(indices))
        if team.leads and ((step + 1) % 500 == 0 or last):
            checkpoint.save(step + 1)
            kept = Averaged(model, 0.0)
            average.copy_to(model)
            sample_grid(
                model,
                tokenizer,
                [heldout.rows[i] for i in show],
                heldout.pixels(show),
                FOLDER / f"{step + 1:06d}.png",
            )
            export(model, tokenizer, data)
            kept.copy_to(model)
        if last:
            break
    team.wait()


@torch.no_grad()
def restore_shipped(model: MiniSD) -> None:
    model.unet.load_state_dict(
        UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet").float().state_dict()
    )
    shipped = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder", torch_dtype=torch.float32)
    model.text_encoder.load_state_dict(shipped.state_dict())
    model.names.restore(NAMES_FILE)


if __name__ == "__main__":
    main()
