"""Images to latents and back, by a model's VAE. What the denoiser sees is (z - shift) * scale, of Flux.2 in patches."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKLFlux2, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from torch.nn import functional as F

from textinv_ray.config.model_families import patch_size, vae_factor

PIXELS_AT_ONCE = 8 * 512**2
"""That the VAE encodes or decodes: its activations at full resolution need the most memory of all."""
_MOST_IMAGES = 16  # that are encoded at once


def latent_moments(vae: ModelMixin, images: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `Backbone.latent_moments`. dtype: of what is returned."""
    means, stds = [], []
    batch_size = min(_MOST_IMAGES, _batch_size(images.shape[1] * images.shape[2]))
    for start in range(0, len(images), batch_size):
        pixels = torch.tensor(images[start : start + batch_size], device=vae.device)
        pixels = (pixels.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1).to(vae.dtype)
        mean, std = _posterior(vae, pixels)
        means.append(mean.to(dtype))
        stds.append(std.to(dtype))
    mean, std = torch.cat(means), torch.cat(stds)
    if not (mean.isfinite().all() and std.isfinite().all()):
        precision = str(vae.dtype).removeprefix("torch.")
        raise ValueError(f"the VAE overflows in {precision}: set model.vae_dtype to bfloat16 or float32")
    _, scale = _shift_and_scale(vae, mean)
    return scaled(vae, mean), F.pixel_unshuffle(std, patch_size(vae.config)) * scale


def scaled(vae: ModelMixin, latents: Tensor) -> Tensor:
    """Latents of the VAE as the denoiser sees them: (B, C, h, w), of Flux.2 (B, 4 C, h/2, w/2)."""
    shift, scale = _shift_and_scale(vae, latents)
    return (F.pixel_unshuffle(latents, patch_size(vae.config)) - shift) * scale


def decode(vae: ModelMixin, latents: Tensor) -> np.ndarray:
    """See `Backbone.decode`."""
    latents = latents.to(vae.dtype)
    shift, scale = _shift_and_scale(vae, latents)
    latents = F.pixel_shuffle(latents / scale + shift, patch_size(vae.config))
    factor = vae_factor(vae.config)
    parts = latents.split(_batch_size(latents.shape[-2] * latents.shape[-1] * factor**2))
    pixels = torch.cat([vae.decode(part, return_dict=False)[0] for part in parts])
    images = VaeImageProcessor(vae_scale_factor=factor).postprocess(pixels, output_type="np")
    return (images * 255).round().astype(np.uint8)


def _posterior(vae: ModelMixin, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of q(z | x). pixels: (B, 3, H, W) in [-1, 1]."""
    encoded = vae.encode(pixels)
    if isinstance(vae, AutoencoderDC):  # not variational
        return encoded.latent, torch.zeros_like(encoded.latent)
    return encoded.latent_dist.mean, encoded.latent_dist.std


def _shift_and_scale(vae: ModelMixin, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Numbers, or one per channel (C, 1, 1)."""
    config = vae.config
    if isinstance(vae, AutoencoderKLFlux2):  # batch normalisation with the statistics of its training
        mean, variance = (values.to(latents) for values in (vae.bn.running_mean, vae.bn.running_var))
        return mean[:, None, None], (variance + config.batch_norm_eps).rsqrt()[:, None, None]
    means, stds = config.get("latents_mean"), config.get("latents_std")
    if means is None or stds is None:
        return config.get("shift_factor") or 0.0, config.scaling_factor
    mean, std = (latents.new_tensor(values)[:, None, None] for values in (means, stds))
    return mean, config.scaling_factor / std


def _batch_size(pixels: int) -> int:
    """pixels: of one image."""
    return max(1, PIXELS_AT_ONCE // pixels)
