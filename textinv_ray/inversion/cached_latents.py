"""What the VAE and the masks make of a concept's images, once: all that steps need of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.pixel_weights import pixel_weights


def cached_latents(
    concept: Concept, backbone: Backbone, *, flips: bool, unmasked_weight: float
) -> dict[str, Tensor]:
    """latent_means and latent_stds of the VAE's posterior for every image x crop (x flip): (N * A * F, C, h, w) each;
    time_ids of these, (N * A * F, 6), and the weights of their latents in the loss: pixel_weights (N * A * F, 1, h, w).

    A step samples a latent from this posterior, which is the distribution that encoding the image anew would give.
    """
    images = concept.images
    variants = np.stack([images, images[:, :, :, ::-1]], axis=2) if flips else images
    means, stds = backbone.latent_moments(variants.reshape(-1, *images.shape[2:]))
    height, width = means.shape[-2:]
    weights = pixel_weights(concept, (height, width), flips=flips, unmasked_weight=unmasked_weight)
    return {
        "latent_means": means,
        "latent_stds": stds,
        "time_ids": torch.tensor(concept.time_ids(flips), device=means.device),
        "pixel_weights": weights.to(means),
    }
