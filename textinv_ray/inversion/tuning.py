"""What a worker measures on its device before the first step: the pack size, and whether compilation works."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable

import torch

from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.pack import Pack, is_out_of_memory
from textinv_ray.inversion.task import ConceptTask

logger = logging.getLogger(__name__)

_TRIAL_SECONDS = 30  # no larger size is tried after this
# Relative to the gradient's norm. Compiled kernels round differently: by 0.5 % in float16, some per cent in bfloat16.
_MAX_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


def choose_pack_size(backbone: Backbone, sample_task: ConceptTask, config: JobConfig) -> int:
    """`pack.size`; for "auto", the first power of two whose doubling gains less than 5 % in concept-steps per second.

    Measured with copies of `sample_task`, which isn't changed. A size that doesn't fit in memory ends the trial. If
    not even one concept fits, this turns activation checkpointing on.
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
    """Compiles the denoiser for steps of packs of `size` such concepts, and keeps it if its gradient is right.

    The gradient is compared with that of the denoiser without compilation, because torch.compile can be wrong without
    an error: with torch 2.13 on CPUs in bfloat16, it is zero. Returns whether steps are compiled from now on; if not,
    the reason is logged.
    """
    batch_size = config.training.batch_size
    task = copy.copy(sample_task)
    task.concept = dataclasses.replace(task.concept, batch_size=batch_size)
    pack = _pack_of_copies(backbone, task, config, size)
    backbone.compiled = None
    try:
        _, expected = pack.losses_and_gradient()
        backbone.compiled = CompiledDenoiser(backbone.denoiser, size * batch_size, backend)
        _, gradient = pack.losses_and_gradient()
    except (RuntimeError, MemoryError) as error:  # a missing compiler, too little memory
        problem = " ".join(str(error).split("\n")[:2])
    else:
        difference = float((gradient - expected).norm() / expected.norm())
        if difference <= _MAX_DIFFERENCE[backbone.dtype]:
            return True
        problem = f"the gradient is off by {difference:.0%}"
    backbone.compiled = None
    logger.warning("torch.compile can't be used here, so steps aren't compiled: %s", problem)
    return False


def _concepts_per_second(backbone: Backbone, task: ConceptTask, config: JobConfig, size: int) -> float | None:
    """Steps per second times `size`; None when a pack of this size doesn't fit in memory."""
    try:
        return size * steps_per_second(backbone, task, config, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # here, where no traceback holds tensors any more
    return None


def steps_per_second(
    backbone: Backbone, task: ConceptTask, config: JobConfig, size: int, seconds: float = 1.0
) -> float:
    """Steps per second of a pack of `size` copies. After one step to warm up, two or more for about `seconds`."""
    pack = _pack_of_copies(backbone, task, config, size)
    pack.step()
    steps, start = 0, _now(backbone)
    while steps < 2 or (_now(backbone) - start < seconds and steps < 30):
        pack.step()
        steps += 1
    return steps / (_now(backbone) - start)


def _pack_of_copies(backbone: Backbone, task: ConceptTask, config: JobConfig, size: int) -> Pack:
    """A pack of `size` copies of a task, which isn't changed."""
    pack = Pack(backbone, config.model_copy(update={"stopping": StoppingConfig()}), size)
    for _ in range(size):
        copied = copy.copy(task)
        copied.concept = dataclasses.replace(task.concept, steps=1000)
        copied.step = 0
        own = task.tensors
        copied.tensors = {
            **own,
            "losses": own["losses"].new_zeros(1000),
            # The initial loss scale may overflow; a run lowers it in its first steps
            "loss_scale": own["loss_scale"].clamp(max=256),
        }
        pack.add(copied)
    return pack


def _now(backbone: Backbone) -> float:
    """The time in seconds, once the device has finished all its work."""
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    return time.perf_counter()
