"""Learning to the end in this process, without any service, and comparing what was learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import JsonValue

from tests.support import tiny
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask


def run(tasks: Sequence[ConceptTask], backbone: Backbone, size: int, config: JobConfig) -> None:
    """Takes the tasks to their ends in a pack of this size. Slots are refilled in the order given."""
    pack, waiting = Pack(backbone, config, size), list(tasks)
    while waiting or pack.tasks:
        while waiting and pack.free:
            pack.add(waiting.pop(0))
        pack.step()


def alone(concept: Concept, backbone: Backbone, config: JobConfig) -> ConceptTask:
    """A concept's task at its end, learned in a pack of its own."""
    task = ConceptTask(concept, backbone, config)
    run([task], backbone, 1, config)
    return task


def assert_same(task: ConceptTask, expected: ConceptTask, tolerance: float = 1e-9) -> None:
    """The same step and, up to `tolerance`, the same state."""
    assert task.step == expected.step
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(
            task.state_dict()[name], value, rtol=0, atol=tolerance, equal_nan=True, msg=name
        )


def random_masks(seed: int, count: int = 3) -> np.ndarray:
    """Masks of the concepts of tiny.py: uint8 (count, 1, 16, 16), each with black and white in it."""
    masks = np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 16), dtype=np.uint8)
    masks[:, :, :6] = 0
    masks[:, :, 12:] = 255
    return masks


def gradients_by_target(
    model: Backbone, config: JobConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a loss whose mask is white in the lower half and whose `unmasked_weight` is 0, by a word's vector.

    Three of them: as it is, with another target where the mask is black, and with another one where it is white. What
    the model sees is the same, because latents and noise change so that the noisy latents don't.
    """
    masks = np.zeros((3, 1, 16, 16), np.uint8)
    masks[:, :, 8:] = 255
    config = config.override(["training.unmasked_weight=0"])
    tensors = ConceptTask(tiny.concept(masks=masks), model, config).tensors
    z, weights = tensors["latent_means"][:2], tensors["pixel_weights"][:2]
    dtype = z.dtype
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    levels = model.levels(torch.tensor([0.3, 0.6], dtype=torch.float64))
    of_noise, _ = model.corrupt(torch.zeros_like(z), torch.ones_like(z), levels)
    of_latents, _ = model.corrupt(torch.ones_like(z), torch.zeros_like(z), levels)
    height = z.shape[-2] // 2
    found = []
    for rows in (slice(0, 0), slice(0, height), slice(height, None)):
        moved = torch.zeros_like(z)
        moved[:, :, rows] = 2.0
        vectors = tensors["vectors"].detach().clone().requires_grad_()
        ids, time_ids = tensors["prompt_ids"][:2], tensors["time_ids"][:2]
        losses = model.denoising_loss(
            z - moved * of_noise / of_latents,
            noise + moved,
            levels,
            model.encode(ids, vectors, time_ids),
            config.training,
            weights,
        )
        found.append(torch.autograd.grad(losses.sum(), vectors)[0])
    return found[0], found[1], found[2]


def digest(backbone: Backbone) -> str:
    """SHA-256 of every bit of the model, names included."""
    total = hashlib.sha256()
    for model in backbone.models:
        for name, value in sorted(model.state_dict().items()):
            total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def dvar(
    training: Mapping[str, JsonValue] | None = None, *, min_steps: int = 3, **changes: JsonValue
) -> JobConfig:
    """A configuration whose rule ends the learning of tiny concepts at different steps."""
    rule = {"every": 2, "batch_size": 3, "window": 3, "threshold": 0.08, **changes}
    section = {"rule": "dvar", "min_steps": min_steps, "dvar": rule}
    return JobConfig.from_dict({"stopping": section, "training": training or {}})
