"""Train mini-sd's AutoencoderKL: 64 x 64 pixels <-> 4 x 16 x 16 latents, then encode the whole data set once.

    torchrun --nproc-per-node N -m training.vae [--preset cpu|gpu] [--steps N] [--hours H]
    torchrun --nproc-per-node N -m training.vae --part decoder [--layers 2]
    torchrun --nproc-per-node N -m training.vae --encode

A run starts from its checkpoint; with none, from the shipped weights; with none of these either, from nothing.
With --part decoder the latents stay as they are: UNet, text encoder and learned words stay valid. With --part encoder
what latents mean stays: the encoder learns to find better ones for the same decoder.
--layers makes the decoder deeper; it only runs for pictures, never while a word is learned.

Kingma & Welling 2014 with a small weight on the KL term, as in latent diffusion (Rombach et al. 2022, appendix G);
reconstruction by absolute and squared error and by the differences of neighbouring pixels, which keeps outlines sharp.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

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
    batches,
    compiles,
    default_preset,
    device,
    learning_rate,
    save_grid,
    save_half,
    to_pixels,
    to_tensor,
)
from training.group_norm import use_channels_last_group_norm

PEAK_RATE = 3e-4
"""Of a batch of eight, which is small: every image holds thousands of pixels to learn from, and steps are what a short
run lacks."""
KL_WEIGHT = 3e-4
AVERAGE, WARMUP = 0.998, 50
FOLDER = BUILD / "vae"
SHIPPED = MODELS / "mini-sd" / "vae"


def build(channels: tuple[int, ...], layers: int = 1) -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers,
        norm_num_groups=16,
        mid_block_add_attention=False,
    )
    # Start with little noise in the latents: with the usual unit variance the decoder learns to ignore them.
    torch.nn.init.constant_(vae.quant_conv.bias[4:], -6.0)
    use_channels_last_group_norm(vae)
    return vae


@torch.no_grad()
def deepened(vae: AutoencoderKL, layers: int) -> AutoencoderKL:
    """The same function with `layers` residual blocks at each size: the added ones start as the identity.

    The class gives encoder and decoder the same depth. Where only the decoder is trained, the encoder's added blocks
    stay the identity, and cost little: images are encoded once.
    """
    deeper = build(tuple(vae.config.block_out_channels), layers)
    deeper.register_to_config(scaling_factor=vae.config.scaling_factor)
    known = vae.state_dict()
    for name, weight in deeper.state_dict().items():
        if name in known:
            weight.copy_(known[name])
        elif ".conv2." in name:
            weight.zero_()
    return deeper


def differences(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def loss_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    with autocast():
        with torch.set_grad_enabled(any(weight.requires_grad for weight in vae.encoder.parameters())):
            posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample.float()
    edges = sum(F.l1_loss(a, b) for a, b in zip(differences(decoded), differences(images), strict=True))
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return F.l1_loss(decoded, images) + 5 * F.mse_loss(decoded, images) + 0.3 * edges + KL_WEIGHT * divergence


@torch.no_grad()
def psnr(vae: AutoencoderKL, pixels: np.ndarray) -> float:
    """Mean over images of 10 log10(255^2 / MSE), of reconstructions from the posterior's mean, in dB."""
    errors = []
    for start in range(0, len(pixels), 100):
        images = pixels[start : start + 100]
        decoded = to_pixels(vae.decode(vae.encode(to_tensor(images)).latent_dist.mean).sample)
        errors.append(((decoded.astype(np.float64) - images) ** 2).mean((1, 2, 3)))
    return float((10 * np.log10(255**2 / np.concatenate(errors))).mean())


@torch.no_grad()
def encode_all(vae: AutoencoderKL, data: Data, team: Team, path: Path = FOLDER / "moments.npy") -> None:
    """Write `path`: float16 (N, 8, 16, 16), the posterior's mean and log variance, not yet scaled."""
    shape = (len(data), 8, 16, 16)
    if team.leads:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    team.wait()
    moments = np.load(path, mmap_mode="r+")
    for start in team.share(range(0, len(data), 256)):
        indices = range(start, min(start + 256, len(data)))
        with autocast():
            encoded = vae.encode(data.batch(indices)).latent_dist.parameters
        moments[start : start + len(indices)] = encoded.float().cpu().numpy()
        if start % 12800 == 0:
            print(f"encoded {start + len(indices)} of {len(data)}", flush=True)
    moments.flush()
    team.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default=default_preset())
    parser.add_argument("--steps", type=int)
    parser.add_argument("--hours", type=float, default=1e9, help="be done within this time")
    parser.add_argument(
        "--part", choices=("all", "encoder", "decoder"), default="all", help="what is trained"
    )
    parser.add_argument(
        "--encode", action="store_true", help="only encode the data set, with the shipped weights"
    )
    parser.add_argument(
        "--folder", type=Path, help="of checkpoint and pictures; build/mini/vae if it isn't said"
    )
    parser.add_argument("--trial", action="store_true", help="compare only: the bundled model stays as it is")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak of the learning rate")
    parser.add_argument("--layers", type=int, help="residual blocks of encoder and decoder at each size")
    options = parser.parse_args()
    preset, team = PRESETS[options.preset], Team()
    schedule = Schedule(options.steps or preset.vae_steps, options.hours, team)

    torch.manual_seed(0)
    data, heldout = Data(BUILD / "drawings"), Data(BUILD / "drawings" / "heldout", effects=False)
    folder = options.folder or (FOLDER if options.part == "all" else BUILD / options.part)
    vae = build(preset.vae_channels)
    if (SHIPPED / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(SHIPPED).float()
    if options.layers and options.layers > vae.config.layers_per_block:
        vae = deepened(vae, options.layers)
    use_channels_last_group_norm(vae)
    vae = vae.to(device(), memory_format=torch.channels_last)
    if options.encode:
        encode_all(vae, data, team)
        return
    frozen = {"encoder": (vae.decoder, vae.post_quant_conv), "decoder": (vae.encoder, vae.quant_conv)}
    for module in frozen.get(options.part, ()):
        module.requires_grad_(False)
    if compiles():
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)
    parameters = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, options.rate, (0.9, 0.99), weight_decay=0, fused=True)
    average = Averaged(vae, AVERAGE)
    checkpoint, progress = Checkpoint(folder, vae, optimizer, average), Progress(folder, "vae")
    first = checkpoint.load()
    torch.manual_seed(team.rank)
    for step, indices in zip(
        itertools.count(first), batches(len(data), preset.vae_batch, 1, first), strict=False
    ):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step - first, schedule.progress(step), preset.rate * options.rate, WARMUP, cooldown=0.9
            )
        loss = loss_of(vae, data.batch(team.share(indices)))
        loss.backward()
        team.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(vae)
        last = schedule.progress(step + 1) >= 1
        if team.leads:
            progress.update(step + 1, loss, len(indices))
            if (step + 1) % 500 == 0 or last:
                checkpoint.save(step + 1)
        if last:
            break

    average.copy_to(vae)
    torch.compiler.set_stance("force_eager")
    if options.part != "decoder" and not options.trial:
        encode_all(vae, data, team)
        vae.register_to_config(scaling_factor=scaling_factor())
    if team.leads:
        finish(vae, heldout, folder, ship=not options.trial)
    team.wait()


def scaling_factor() -> float:
    """What makes the latents' variance one, the posterior's own included."""
    moments = np.load(FOLDER / "moments.npy", mmap_mode="r")
    moments = moments[:: max(1, len(moments) // 4000)].astype(np.float32)
    variance = moments[:, :4].var() + np.exp(moments[:, 4:].clip(-30, 20)).mean()
    return float(1 / np.sqrt(variance))


def finish(vae: AutoencoderKL, heldout: Data, folder: Path, ship: bool) -> None:
    """Measure and show; with `ship`, write the weights into the bundled model."""
    sample = heldout.pixels(range(0, 48))
    print(f"PSNR on held-out images {psnr(vae, heldout.pixels(range(0, min(800, len(heldout)), 8))):.2f} dB")
    with torch.no_grad():
        decoded = to_pixels(vae.decode(vae.encode(to_tensor(sample)).latent_dist.mean).sample)
    save_grid(folder / "reconstructions.png", np.stack([sample, decoded], 1).reshape(-1, 64, 64, 3), 12)
    if ship:
        save_half(vae, SHIPPED)


if __name__ == "__main__":
    main()
