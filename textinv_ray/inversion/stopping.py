"""When a concept has converged: rules that end its learning before all its steps are taken.

A rule looks at the word every few steps, before the next step is taken, and each look gives one number. The series of
a concept's looks is part of its state, and the rules are functions of that series: so where learning ends depends on
the concept alone, and a state from elsewhere can be asked whether it lies beyond the end.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig

if TYPE_CHECKING:
    from textinv_ray.inversion.draws import Draws


def every(stopping: StoppingConfig) -> int:
    """Steps between looks; 0 when nobody looks."""
    return {"none": 0, "dvar": stopping.dvar.every, "clip": stopping.clip.every}[stopping.rule]


def count(steps: int, stopping: StoppingConfig) -> int:
    """Looks from step 0 to step `steps`, both included: the one at `step` is number step // every."""
    return steps // every(stopping) + 1 if stopping.rule != "none" else 0


def is_due(step: int, steps: int, stopping: StoppingConfig) -> bool:
    """Whether there is a look at this step, of `steps` in all.

    DVAR compares with all that was before, and a loss after the last step ends nothing. Pictures of words that are
    hardly learned yet are worth no look; the last word's are, as it may be the best.
    """
    if stopping.rule == "none" or step % every(stopping):
        return False
    return step < steps if stopping.rule == "dvar" else step >= max(1, stopping.min_steps)


def kind(concept: Concept, config: JobConfig) -> str:
    """Digest of what a look measures, empty when nobody looks: only looks of one kind make a series."""
    stopping, review, scoring = config.stopping, config.review, config.scoring
    if stopping.rule == "none":
        return ""
    if stopping.rule == "dvar":
        depends: list[object] = [stopping.dvar.batch_size]
    else:
        prompt = scoring.image_prompt.of(concept.learnable_property)
        steps = stopping.clip.num_inference_steps or review.num_inference_steps
        sampling = [review.sampler, steps, review.guidance_scale]
        depends = [scoring.model, prompt, stopping.clip.num_images, *sampling]
    return hashlib.sha256(json.dumps([stopping.rule, every(stopping), *depends]).encode()).hexdigest()


def ends_at(looks: np.ndarray, concept: Concept, stopping: StoppingConfig) -> int | None:
    """The first step at which the rule ends learning; none: it goes on.

    looks: (number of looks so far,). One that is missing or gave no finite number is passed over.
    """
    known = np.flatnonzero(np.isfinite(looks))
    if stopping.rule == "dvar":
        ends = variance_ratios(looks[known], stopping.dvar.window) < stopping.dvar.threshold
    elif stopping.rule == "clip":
        ends = looks_since_best(looks[known]) >= stopping.clip.patience
    else:
        return None
    steps = known * every(stopping)
    # A word whose vectors aren't all there yet isn't learned.
    found = steps[ends & (steps >= max(stopping.min_steps, *concept.vectors_added_at, 0))]
    return int(found[0]) if len(found) else None


def best_step(looks: np.ndarray, concept: Concept, stopping: StoppingConfig) -> int | None:
    """The step whose word is the best that `rule: clip` has seen so far; none: it has seen none, or doesn't apply.

    looks: as for `ends_at`. A word whose vectors aren't all there yet doesn't count; of equals the first does.
    """
    if stopping.rule != "clip":
        return None
    steps = np.arange(len(looks)) * every(stopping)
    scores = np.where(np.isfinite(looks) & (steps >= max((0, *concept.vectors_added_at))), looks, -np.inf)
    return int(steps[scores.argmax()]) if (scores > -np.inf).any() else None


def variance_ratios(losses: np.ndarray, window: int) -> np.ndarray:
    """DVAR (Voronov et al. 2023): variance of the last `window` losses / variance of all so far, at each loss.

    NaN, which is below no threshold, before there are `window` losses and while all are equal. (n,) -> (n,)
    """
    ratios = np.full(len(losses), np.nan)
    if len(losses) >= window:
        # From the first loss, which is far from the others, so that no digits are lost
        centred = losses - losses[0]
        counts = np.arange(1, len(losses) + 1)
        total = np.cumsum(centred**2) / counts - (np.cumsum(centred) / counts) ** 2
        recent = np.lib.stride_tricks.sliding_window_view(centred, window).var(axis=1)
        whole = total[window - 1 :]
        np.divide(recent, whole, out=ratios[window - 1 :], where=whole > 0)
    return ratios


def looks_since_best(scores: np.ndarray) -> np.ndarray:
    """How many looks ago the best score so far was first reached, at each: (n,) -> (n,)."""
    before = np.maximum.accumulate(np.concatenate([[-np.inf], scores]))[:-1]
    places = np.arange(len(scores))
    return places - np.maximum.accumulate(np.where(scores > before, places, 0))


def fixed_batch(
    draws: Draws, means: Tensor, stds: Tensor, prompt_ids: Tensor, *, stages: int, num_timesteps: int
) -> dict[str, Tensor]:
    """What a concept's loss is measured on at every look (Voronov et al. 2023: all five sources of chance fixed).

    draws: as for a step, of F samples; their timesteps are spread, one to each F-th of the schedule. means, stds:
    of the cached latents. prompt_ids: (stages * prompts, L), of the word with each number of vectors in turn.
    Returns fixed_latents and fixed_noise (F, C, h, w), fixed_timesteps (F,), and fixed_ids (stages * F, L).
    """
    device, size = means.device, len(draws.timesteps)
    chosen, noise = draws.latents.to(device), draws.noise.to(device, means.dtype)
    timesteps = (torch.arange(size) * num_timesteps + draws.timesteps) // size
    by_stage = prompt_ids.reshape(stages, -1, prompt_ids.shape[1])
    return {
        "fixed_latents": means[chosen] + stds[chosen] * noise[0],
        "fixed_noise": noise[1],
        "fixed_timesteps": timesteps.to(device),
        "fixed_ids": by_stage[:, draws.prompts.to(device)].flatten(0, 1),
    }
