"""Train mini-sd's AutoencoderKL: 64 x 64 pixels <-> 4 x 16 x 16 latents, then encode the whole data set once.

    python -m training.vae [--preset small|large] [--steps N]
    python -m training.vae --decoder-steps N      # the decoder alone goes on, on the same latents

Kingma & Welling 2014 with a small weight on the KL term, as in latent diffusion (Rombach et al. 2022, appendix G);
reconstruction by absolute and squared error and by the differences of neighbouring pixels, which keeps outlines sharp.
"""

from __future__ import annotations

import argparse

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
    autocast,
    batches,
    default_preset,
    device,
    learning_rate,
    save_grid,
    save_half,
    to_pixels,
    to_tensor,
)
from training.group_norm import use_channels_last_group_norm

BATCH = 32
PEAK_RATE = 1e-3
KL_WEIGHT = 3e-4
FOLDER = BUILD / "vae"


def build(channels: tuple[int, ...]) -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
    )
    # Start with little noise in the latents: with the usual unit variance the decoder learns to ignore them.
    torch.nn.init.constant_(vae.quant_conv.bias[4:], -6.0)
    use_channels_last_group_norm(vae)
    return vae


def differences(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def loss_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    with autocast():
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample.float()
    edges = sum(F.l1_loss(a, b) for a, b in zip(differences(decoded), differences(images), strict=True))
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images) + 0.5 * edges + KL_WEIGHT * divergence


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
def encode_all(vae: AutoencoderKL, data: Data) -> None:
    """Write moments.npy: float16 (N, 8, 16, 16), the posterior's mean and log variance, not yet scaled."""
    moments = np.lib.format.open_memmap(FOLDER / "moments.npy", "w+", np.float16, (len(data), 8, 16, 16))
    for start in range(0, len(data), 256):
        indices = range(start, min(start + 256, len(data)))
        with autocast():
            encoded = vae.encode(to_tensor(data.pixels(indices))).latent_dist.parameters
        moments[start : start + len(indices)] = encoded.float().cpu().numpy()
        if start % 12800 == 0:
            print(f"encoded {start + len(indices)} of {len(data)}", flush=True)
    moments.flush()


def train_decoder(steps: int) -> None:
    """Go on with the shipped decoder while the encoder, and with it what the UNet learned, stays as it is.

    More weight on the squared error, as reconstruction is measured by it. The weights are written if better.
    """
    torch.manual_seed(2)
    data, heldout = Data(BUILD / "drawings"), Data(BUILD / "drawings" / "heldout", effects=False)
    pixels = heldout.pixels(range(0, len(heldout), 4))
    folder = MODELS / "mini-sd" / "vae"
    vae = AutoencoderKL.from_pretrained(folder).float().to(device(), memory_format=torch.channels_last)
    use_channels_last_group_norm(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    trained = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, PEAK_RATE / 2, (0.9, 0.99), weight_decay=0, fused=True)
    average, before = Averaged(vae, 0.995), psnr(vae, pixels)
    progress = Progress(FOLDER, "decoder")
    for step, indices in zip(range(steps), batches(len(data), BATCH, 3, 0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, step / steps, PEAK_RATE / 2, warmup=50, cooldown=0.6)
        images = to_tensor(data.pixels(indices))
        with autocast():
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.sample()
            decoded = vae.decode(latents).sample.float()
        edges = sum(F.l1_loss(a, b) for a, b in zip(differences(decoded), differences(images), strict=True))
        loss = 5 * F.mse_loss(decoded, images) + 0.2 * F.l1_loss(decoded, images) + 0.1 * edges
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(vae)
        progress.update(step + 1, loss, len(indices))
    average.copy_to(vae)
    after = psnr(vae, pixels)
    print(f"PSNR on held-out images {before:.2f} -> {after:.2f} dB")
    if after > before:
        save_half(vae, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default=default_preset())
    parser.add_argument("--steps", type=int)
    parser.add_argument("--decoder-steps", type=int, default=0)
    options = parser.parse_args()
    if options.decoder_steps:
        train_decoder(options.decoder_steps)
        return
    preset = PRESETS[options.preset]
    steps = options.steps or preset.vae_steps

    torch.manual_seed(0)
    data, heldout = Data(BUILD / "drawings"), Data(BUILD / "drawings" / "heldout", effects=False)
    vae = build(preset.vae_channels).to(device(), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), PEAK_RATE, (0.9, 0.99), weight_decay=0, fused=True)
    average = Averaged(vae, 0.998)
    checkpoint, progress = Checkpoint(FOLDER, vae, optimizer, average), Progress(FOLDER, "vae")
    first = checkpoint.load()
    for step, indices in zip(range(first, steps), batches(len(data), BATCH, 1, first), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, step / steps, PEAK_RATE)
        loss = loss_of(vae, to_tensor(data.pixels(indices)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(vae)
        progress.update(step + 1, loss, len(indices))
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.save(step + 1)

    average.copy_to(vae)
    sample = heldout.pixels(range(0, 48))
    print(f"PSNR on held-out images {psnr(vae, heldout.pixels(range(min(800, len(heldout))))):.2f} dB")
    with torch.no_grad():
        decoded = to_pixels(vae.decode(vae.encode(to_tensor(sample)).latent_dist.mean).sample)
    save_grid(FOLDER / "reconstructions.png", np.stack([sample, decoded], 1).reshape(-1, 64, 64, 3), 12)
    encode_all(vae, data)
    moments = np.load(FOLDER / "moments.npy", mmap_mode="r")[:: max(1, len(data) // 4000)].astype(np.float32)
    variance = moments[:, :4].var() + np.exp(moments[:, 4:].clip(-30, 20)).mean()
    vae.register_to_config(scaling_factor=float(1 / np.sqrt(variance)))
    save_half(vae, MODELS / "mini-sd" / "vae")


if __name__ == "__main__":
    main()
