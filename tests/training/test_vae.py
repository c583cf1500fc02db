"""The VAE's trainer: a decoder that is made deeper, and trained alone."""

from __future__ import annotations

from typing import Any

import torch

from training.vae import build, deepened, loss_of


def small(layers: int = 1) -> Any:
    torch.manual_seed(0)
    return build((16, 32), layers)


def test_added_layers_start_as_the_identity() -> None:
    vae, images = small(), torch.rand(2, 3, 16, 16) * 2 - 1
    deeper = deepened(vae, 3)
    assert sum(p.numel() for p in deeper.parameters()) > sum(p.numel() for p in vae.parameters())
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        torch.testing.assert_close(deeper.encode(images).latent_dist.mean, latents)
        torch.testing.assert_close(deeper.decode(latents).sample, vae.decode(latents).sample)


def test_decoder_learns_while_the_encoder_stays() -> None:
    vae = deepened(small(), 2)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    loss_of(vae, torch.rand(2, 3, 16, 16) * 2 - 1).backward()
    assert all(weight.grad is None for weight in vae.encoder.parameters())
    added = vae.decoder.up_blocks[0].resnets[2].conv2.weight
    assert added.grad is not None
    assert float(added.grad.abs().sum()) > 0
