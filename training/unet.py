"""Train mini-sd's text encoder and UNet together on the cached latents, and write the pipeline.

    torchrun --nproc-per-node N -m training.unet [--preset cpu|gpu] [--steps N] [--hours H]

The objective is that of latent diffusion (Rombach et al. 2022, eq. 2) for a UNet that predicts v (Salimans & Ho 2022,
appendix D), some captions dropped for classifier-free guidance (Ho & Salimans 2022). Errors are weighted as errors of
the predicted image by the clamped signal-to-noise ratio: from above as min-SNR does (Hang et al. 2023), from below
because in 16 x 16 latents even the noisiest timesteps show colours: without it the model reads them there instead of in
the text.

Goes on from its checkpoint in --folder, or from the shipped weights when there is none. There it writes, as it goes,
log.jsonl, curve.jsonl (the loss on held-out characters), sample grids and mini-sd/, a pipeline of the averaged weights.
The end of the run writes the bundled model. `training.recipes` compares what the options change.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from transformers import CLIPTokenizer

from training import captions as characters
from training.batches import Captions, NamedWords, all_features, named_words
from training.common import (
    BUILD,
    MODELS,
    PRESETS,
    Averaged,
    Checkpoint,
    Data,
    Progress,
    Schedule,
    Team,
    autocast,
    compiles,
    default_preset,
    device,
    learning_rate,
    profiled,
    save_grid,
    to_tensor,
)
from training.model import SCHEDULE, MiniSD, whole_pictures
from training.naming import NAMES_FILE
from training.tokenizer import load as load_tokenizer
from training.world import HELDOUT_STYLES

WARMUP = 100
"""Steps."""


@dataclass(frozen=True)
class Recipe:
    """What runs are compared by. The bundled weights had these values but for batches of 512, a rate of 1e-3 and an
    average of 0.999, on a GPU (`training/minutes.py`), and predicted the noise until their last run."""

    rate: float = 4e-4
    """Peak of the learning rate."""
    average: float = 0.997
    """Decay per step of the averaged weights."""
    lowest: float = 1.0
    """Signal-to-noise ratios below count as this."""
    highest: float = 5.0
    """And above as this."""
    dropped: float = 0.1
    """Share of captions left out."""
    batch: int = 0
    """Samples of a step; 0: the preset's."""
    prediction: str = "v"
    """One of PREDICTIONS."""
    said: float = characters.BACKGROUND_SAID
    """Share of captions with a name that say the background."""
    text: int = 1
    """0: text encoder and names stay as they are, and only the UNet is trained."""
    composed: int = 1
    """0: without the views that `training.world.compose` changed."""


PREDICTIONS: dict[str, dict[str, Any]] = {
    "epsilon": {},
    # Salimans & Ho 2022, appendix D
    "v": {"prediction_type": "v_prediction"},
    # Lin et al. 2024, sections 3.1 to 3.3
    "v-zero-snr": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}
"""What the UNet predicts: the noise, or v = sqrt(a) noise - sqrt(1 - a) latents; the scheduler's settings for it."""
LARGEST_WEIGHT = 50.0
"""Of an error of the noise."""


def weighted_loss(
    model: MiniSD,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas: Tensor,
    named: NamedWords,
    sizes: Tensor,
    clamp: tuple[float, float] = (Recipe.lowest, Recipe.highest),
    largest: float | None = LARGEST_WEIGHT,
) -> Tensor:
    """Squared error of the predicted latents, weighted by the clamped signal-to-noise ratio, (B,).

    `alphas` is alpha-bar at each timestep, (B,). Whatever is predicted, an error of the latents counts the same:
    with the ratio r = a / (1 - a) it is 1 / r of that of the noise, and 1 / (1 + r) of that of v. `largest`: the
    weight that an error of the noise has at most; None: any.
    """
    a = alphas[:, None, None, None]
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    with autocast():
        predicted = model.predict(noisy, timesteps, named, sizes)
    snr = alphas / (1 - alphas)
    weight = snr.clamp(*clamp) if largest is None else torch.minimum(snr.clamp(*clamp), largest * snr)
    if model.schedule["prediction_type"] == "v_prediction":
        target, weight = a.sqrt() * noise - (1 - a).sqrt() * latents, weight / (1 + snr)
    else:
        target, weight = noise, weight / snr
    return weight * (predicted.float() - target).pow(2).mean((1, 2, 3))


class HeldoutLoss:
    """The loss on held-out characters with their full captions, always of the same noise: what the curve shows.

    It is weighted by `Recipe`'s defaults at the noise levels of SCHEDULE, whatever the run's own recipe is, so that
    runs can be compared.
    """

    BANDS = 4

    def __init__(self, heldout: Data, vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int = 256) -> None:
        picked = [index for index, row in enumerate(heldout.rows) if row["style"] not in HELDOUT_STYLES]
        picked = picked[:: max(1, len(picked) // count)][:count]
        with torch.no_grad():
            encoded = vae.encode(to_tensor(heldout.pixels(picked))).latent_dist.mean
        self.latents = encoded * vae.config.scaling_factor
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn(self.latents.shape, generator=generator).to(self.latents)
        spread = torch.arange(len(picked)) * 1000 // len(picked)
        self.timesteps = spread[torch.randperm(len(picked), generator=generator)].to(device())
        self.alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device())[self.timesteps]
        texts = [characters.full_caption(heldout.rows[index]) for index in picked]
        encoded_texts = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        self.ids = encoded_texts.input_ids.to(device())

    @torch.no_grad()
    def __call__(self, model: MiniSD, alphas: Tensor) -> list[float]:
        """Mean loss in each quarter of the timesteps, the least noisy first. `alphas`: alpha-bar of the run's own."""
        model.eval()
        losses = []
        nearest = (alphas.logit()[None] - self.alphas.logit()[:, None]).abs().argmin(1)
        for start in range(0, len(self.latents), 64):
            part = slice(start, start + 64)
            ids = self.ids[part]
            named = ids, torch.zeros_like(ids, dtype=torch.bool), ids.new_zeros(len(ids), model.width).float()
            sizes = whole_pictures(len(ids)).to(ids.device)
            inputs = (self.latents[part], self.noise[part], nearest[part], self.alphas[part], named, sizes)
            losses.append(weighted_loss(model, *inputs))
        model.train()
        loss, band = torch.cat(losses), self.timesteps * self.BANDS // 1000
        return [round(float(loss[band == number].mean()), 5) for number in range(self.BANDS)]


@torch.no_grad()
def sample_grid(model: MiniSD, tokenizer: CLIPTokenizer, heldout: Data, path: Path, count: int = 24) -> None:
    """Held-out captions drawn by the model, each below the real image it was taken from."""
    show = list(range(0, min(len(heldout), 800), 800 // count))[:count]
    rows, real = [heldout.rows[index] for index in show], heldout.pixels(show)
    pipe = model.pipeline(tokenizer)
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


def arguments(description: str | None, folder: Path) -> argparse.ArgumentParser:
    """Of the command line; `folder` is where checkpoints go if it says nothing else."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default=default_preset())
    parser.add_argument(
        "--steps", type=int, help="length of the run, the falling learning rate of its last part included"
    )
    parser.add_argument("--hours", type=float, default=1e9, help="be done, and ship, within this time")
    parser.add_argument("--folder", type=Path, default=folder, help="of checkpoints, curve and grids")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=compiles(),
        help="the UNet; on a CPU its gradients are wrong then",
    )
    parser.add_argument("--profile", action="store_true", help="write profile.txt: what steps spend time on")
    parser.add_argument("--trial", action="store_true", help="compare only: the bundled model stays as it is")
    parser.add_argument(
        "--fresh", action="store_true", help="with no checkpoint, begin with a UNet of random weights"
    )
    for field in dataclasses.fields(Recipe):
        choices = PREDICTIONS if field.name == "prediction" else None
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default, choices=choices
        )
    return parser


def main() -> None:
    options = arguments(__doc__, BUILD / "unet").parse_args()
    torch.manual_seed(0)
    data, tokenizer = Data(BUILD / "drawings"), load_tokenizer()
    model = MiniSD(PRESETS[options.preset], tokenizer, all_features(data))
    moments = np.load(BUILD / "vae" / "moments.npy")
    train(options, model, data, tokenizer, moments, whole_pictures(len(data)))


def train(
    options: argparse.Namespace,
    model: MiniSD,
    data: Data,
    tokenizer: CLIPTokenizer,
    latents_of: np.ndarray,
    sizes_of: Tensor,
) -> None:
    """Run to the end of `options`' steps or hours.

    latents_of: float16 (N, 8, 16, 16), each drawing's moments as `training.vae` writes them. sizes_of: (N, 6), what
    `MiniSDXL` reads of each.
    """
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)})
    preset, folder = PRESETS[options.preset], options.folder
    batch = recipe.batch or preset.unet_batch
    model.schedule |= PREDICTIONS[recipe.prediction]
    team = Team()
    schedule = Schedule(options.steps or preset.unet_steps, options.hours, team)

    heldout = Data(BUILD / "drawings" / "heldout", effects=False)
    moments, all_sizes = torch.from_numpy(latents_of).to(device()), sizes_of.to(device())
    vae = AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").float().to(device())
    factor = vae.config.scaling_factor
    model.to(device())
    model.unet.to(memory_format=torch.channels_last)
    if options.compile:
        model.unet.compile(dynamic=False)
    captions = Captions(
        data, tokenizer, model.names.index, team, recipe.dropped, recipe.said, bool(recipe.composed)
    )
    if not recipe.text:
        model.text_encoder.requires_grad_(False)
        model.names.requires_grad_(False)
    parts = [([weight for weight in group if weight.requires_grad], ratio) for group, ratio in model.groups()]
    parameters = [weight for weights, _ in parts for weight in weights]
    groups = [{"params": weights, "ratio": ratio} for weights, ratio in parts]
    optimizer = torch.optim.AdamW(groups, recipe.rate, (0.9, 0.99), weight_decay=0.01, fused=True)
    average = Averaged(model, recipe.average)
    checkpoint, progress = Checkpoint(folder, model, optimizer, average), Progress(folder, model.name)
    first = checkpoint.load()
    random = (
        {name: weight.clone() for name, weight in model.unet.state_dict().items()} if options.fresh else {}
    )
    if first == 0 and (start := model.begin(tokenizer, data)):
        if options.fresh:
            model.unet.load_state_dict(random)
            start += ", but for the UNet"
        average = checkpoint.average = Averaged(model, recipe.average)
        if team.leads:
            print(f"going on from {start}", flush=True)
    alphas = DDPMScheduler(**model.schedule).alphas_cumprod.to(device())
    measure = HeldoutLoss(heldout, vae, tokenizer)
    clamp = (recipe.lowest, recipe.highest)
    # The noise can't be told from what holds nothing else; v can.
    largest = LARGEST_WEIGHT if recipe.prediction == "epsilon" else None
    profiler = profiled(folder / "profile.txt") if options.profile and team.leads else None
    if profiler:
        profiler.start()
    for step, indices, words in progress.timed(captions.ahead(batch, 2, first, preset.workers)):
        if team.leads and step == first:
            with torch.compiler.set_stance("force_eager"):
                record(folder, step, batch, measure(model, alphas))
        for group in optimizer.param_groups:
            peak = recipe.rate * preset.rate
            rate = learning_rate(step - first, schedule.progress(step), peak, WARMUP, cooldown=0.4)
            group["lr"] = group["ratio"] * rate
        indices = indices.to(device(), non_blocking=True)
        draws = torch.Generator(device()).manual_seed(step)
        mean, log_variance = moments[indices].float().chunk(2, 1)
        noises = torch.randn((2, *mean.shape), generator=draws, device=device())
        latents = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noises[0]
        noise = team.share(noises[1]).contiguous(memory_format=torch.channels_last)
        latents = team.share(latents * factor).contiguous(memory_format=torch.channels_last)
        # Spread evenly over a batch, which says more about the whole range than independent draws.
        spread = torch.arange(len(indices), device=device())
        spread = (spread + torch.rand(len(indices), generator=draws, device=device())) / len(indices)
        timesteps = team.share((spread * 1000).long())
        named = named_words(model.names, words, captions.slot_id, step * team.size + team.rank)
        sizes = team.share(all_sizes[indices])
        loss = weighted_loss(
            model, latents, noise, timesteps, alphas[timesteps], named, sizes, clamp, largest
        ).mean()
        loss.backward()
        team.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        average.update(model)
        last = schedule.progress(step + 1) >= 1
        if team.leads:
            progress.update(step + 1, loss, len(indices))
        if profiler:
            profiler.step()
        measured = (step + 1) % (preset.show_every // 5) == 0
        shown = last or (step + 1) % preset.show_every == 0
        if team.leads and (measured or last):
            checkpoint.save(step + 1)
            kept = Averaged(model, 0.0)
            average.copy_to(model)
            with torch.compiler.set_stance("force_eager"):
                record(folder, step + 1, batch, measure(model, alphas))
            if shown:
                model.export(tokenizer, data, folder / model.name, folder / NAMES_FILE.name)
                if last and not options.trial:
                    model.export(tokenizer, data, MODELS / model.name, model.names_file)
                with torch.compiler.set_stance("force_eager"):
                    sample_grid(model, tokenizer, heldout, folder / f"{step + 1:06d}.png")
            kept.copy_to(model)
        if last:
            break
    if profiler:
        profiler.stop()
    team.wait()


def record(folder: Path, step: int, batch: int, losses: list[float]) -> None:
    """Add a point to the curve."""
    line = {
        "step": step,
        "samples": step * batch,
        "heldout": round(float(np.mean(losses)), 5),
        "by_noise": losses,
    }
    print("held out", line, flush=True)
    with open(folder / "curve.jsonl", "a") as curve:
        curve.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
