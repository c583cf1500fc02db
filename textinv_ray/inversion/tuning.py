"""What a worker finds out about its device before the first step: how many concepts, and whether to compile."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable

import torch

from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig
from textinv_ray.inversion.backbone import Backbone
from textinv_ray.inversion.compiled import CompiledUNet
from textinv_ray.inversion.pack import Pack, is_out_of_memory
from textinv_ray.inversion.task import ConceptTask

logger = logging.getLogger(__name__)

_TRIAL_SECONDS = 30  # no further size is tried after this
# Kernels round differently: by half a per cent of the gradient in float16, by some per cent in bfloat16.
_MOST_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


def choose_pack_size(backbone: Backbone, sample_task: ConceptTask, config: JobConfig) -> int:
    """The configured size; for "auto", the one whose doubling gains less than 5 % in samples per second.

    Measured with copies of a task, which itself isn't touched. Sizes that don't fit in memory don't count; if not
    even one concept does, activations are checkpointed from then on.
    """
    if config.pack.size != "auto":
        return config.pack.size
    best, best_speed, size = 1, 0.0, 1
    start = time.perf_counter()
    while size <= config.pack.max_size and time.perf_counter() - start < _TRIAL_SECONDS:
        speed = _concepts_per_second(backbone, sample_task, config, size)
        if speed is None and size == 1 and not backbone.checkpoints_activations:
            backbone.checkpoint_activations()
        elif speed is None or speed < 1.05 * best_speed:
            break
        else:
            best, best_speed, size = size, speed, size * 2
    return best


def compile_step(
    backbone: Backbone,
    sample_task: ConceptTask,
    size: int,
    config: JobConfig,
    backend: str | Callable[..., object] = "inductor",
) -> bool:
    """Compiles the UNet for the steps of packs of `size` such concepts, if that gives the gradient that it should.

    It is compared with what the UNet gives as it is, since torch.compile may be wrong in silence: on CPUs in
    bfloat16, with torch 2.13, the gradient is zero. Returns whether steps are compiled from now on.
    """
    batch_size = config.training.batch_size
    task = copy.copy(sample_task)
    task.concept = dataclasses.replace(task.concept, batch_size=batch_size)
    pack = _pack_of_copies(backbone, task, config, size)
    backbone.compiled = None
    try:
        _, expected = pack.losses_and_gradient()
        backbone.compiled = CompiledUNet(backbone.unet, size * batch_size, backend)
        _, gradient = pack.losses_and_gradient()
    except (RuntimeError, MemoryError) as error:  # a missing compiler, too little memory
        problem = " ".join(str(error).split("\n")[:2])
    else:
        difference = float((gradient - expected).norm() / expected.norm())
        if difference <= _MOST_DIFFERENCE[backbone.dtype]:
            return True
        problem = f"the gradient is off by {difference:.0%}"
    backbone.compiled = None
    logger.warning("torch.compile is of no use here, steps are taken without it: %s", problem)
    return False


def _concepts_per_second(backbone: Backbone, task: ConceptTask, config: JobConfig, size: int) -> float | None:
    """Steps per second times concepts; None when they don't fit in memory."""
    try:
        return size * steps_per_second(backbone, task, config, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # here, where the error's traceback holds no tensors any more
    return None


def steps_per_second(
    backbone: Backbone, task: ConceptTask, config: JobConfig, size: int, seconds: float = 1.0
) -> float:
    """Steps per second of a pack of `size` copies: one to warm up, then two or more for about `seconds`."""
    pack = _pack_of_copies(backbone, task, config, size)
    pack.step()
    steps, start = 0, _now(backbone)
    while steps < 2 or (_now(backbone) - start < seconds and steps < 30):
        pack.step()
        steps += 1
    return steps / (_now(backbone) - start)


def _pack_of_copies(backbone: Backbone, task: ConceptTask, config: JobConfig, size: int) -> Pack:
    """A full pack that learns one concept many times over; the task itself isn't touched."""
    pack = Pack(backbone, config.model_copy(update={"stopping": StoppingConfig()}), size)
    for _ in range(size):
        copied = copy.copy(task)
        copied.concept = dataclasses.replace(task.concept, steps=1000)
        copied.step = 0
        own = task.tensors
        copied.tensors = {
            **own,
            "losses": own["losses"].new_zeros(1000),
            # The first scale of half precision may be too large, as a run finds out in its first steps.
            "loss_scale": own["loss_scale"].clamp(max=256),
        }
        pack.add(copied)
    return pack


def _now(backbone: Backbone) -> float:
    """Seconds, when the device has done all it was given."""
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    return time.perf_counter()
