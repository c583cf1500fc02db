"""Weights of the loss at each latent, by the masks of the training images.

A mask m in [0, 1] gives the weights u + (1 - u) m with u = `training.unmasked_weight`, and a sample's loss is the mean
of its squared errors e with them: sum_i w_i e_i / sum_i w_i. A latent stands for a square of pixels, and its m is the
mask's mean over these. The padding of `data.fit: pad` has no weight at all.

Other trainers clamp m from below at u (OneTrainer) or have no u (kohya's scripts, u = 0), and leave the division out or
to a setting: then small masks make small losses and steps of another size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from textinv_ray.concepts.concept import Concept


def pixel_weights(concept: Concept, size: tuple[int, int], *, flips: bool, unmasked_weight: float) -> Tensor:
    """w_i / mean(w) of every image x crop (x flip): float64 (N * A * F, 1, h, w), each with the mean 1, on the CPU.

    size: (h, w) of the latents. flips: whether each crop is followed by its mirror image (F = 2, else 1).
    """
    count, crops = concept.images.shape[:2]
    if concept.masks is None and not concept.paddings:
        return torch.ones((count * crops * (1 + flips), 1, *size), dtype=torch.float64)
    of_images = []
    for index in range(count):
        shown = torch.zeros((crops, 1, *concept.shape), dtype=torch.float64)
        left, top, right, bottom = concept.paddings[index] if concept.paddings else (0, 0, 0, 0)
        shown[:, :, top : shown.shape[2] - bottom, left : shown.shape[3] - right] = 1
        mask = shown if concept.masks is None else torch.tensor(concept.masks[index][:, None]).double() / 255
        weights = unmasked_weight * shown + (1 - unmasked_weight) * mask
        of_images.append(F.adaptive_avg_pool2d(weights, size))
    weights = torch.cat(of_images)
    weights = weights / weights.mean(dim=(2, 3), keepdim=True)
    return torch.stack([weights, weights.flip(-1)], dim=1).flatten(0, 1) if flips else weights
