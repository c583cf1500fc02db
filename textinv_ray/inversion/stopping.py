"""Stopping rules: they end a concept's learning before all its steps are taken.

A rule evaluates the word at fixed intervals, before the next step is taken. Each evaluation gives one number: the
loss on a fixed batch (`rule: dvar`) or the CLIP image similarity of samples (`rule: clip`). The series of a concept's
evaluations is part of its state, and the rules are pure functions of that series. So the step at which learning ends
depends on the concept alone, and a state from an earlier run can be checked against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig, TimestepsConfig

if TYPE_CHECKING:
    from textinv_ray.inversion.draws import Draws
    from textinv_ray.inversion.families.backbone import Backbone


def evaluation_interval(stopping: StoppingConfig) -> int:
    """Steps between evaluations; 0 for `rule: none`."""
    return {"none": 0, "dvar": stopping.dvar.every, "clip": stopping.clip.every}[stopping.rule]


def num_evaluations(steps: int, stopping: StoppingConfig) -> int:
    """Entries of the series from step 0 to step `steps`, both included. Step s has entry s // interval."""
    return steps // evaluation_interval(stopping) + 1 if stopping.rule != "none" else 0


def evaluation_due(step: int, steps: int, stopping: StoppingConfig, first: int | None = None) -> bool:
    """Whether the rule evaluates the word at this step, of `steps` in all. first: `Concept.min_steps`.

    `dvar` needs the whole series from step 0 on, but not the last word: a loss after the last step ends nothing.
    `clip` renders samples, so it begins at `min_steps`, and includes the last word because that may be the best one.
    Only a concept with a `min_steps` of its own may have its start evaluated.
    """
    if stopping.rule == "none" or step % evaluation_interval(stopping):
        return False
    if stopping.rule == "dvar":
        return step < steps
    return steps > 0 and step >= (max(1, stopping.min_steps) if first is None else first)


def min_steps(concept: Concept, stopping: StoppingConfig) -> int:
    """The step before which no rule ends the concept's learning."""
    return stopping.min_steps if concept.min_steps is None else concept.min_steps


def evaluation_digest(concept: Concept, config: JobConfig) -> str:
    """Digest of the settings that an evaluation's value depends on; "" for `rule: none`.

    Values can be compared, and continue a saved series, only where this digest is the same.
    """
    stopping, review, scoring = config.stopping, config.review, config.scoring
    if stopping.rule == "none":
        return ""
    if stopping.rule == "dvar":
        depends: list[object] = [stopping.dvar.batch_size]
    else:
        prompt = scoring.image_prompt.of(concept.learnable_property)
        steps = stopping.clip.num_inference_steps or review.num_inference_steps
        sampling = [review.sampler, steps, review.guidance_scale]
        side = [review.resolution] if review.resolution else []  # came later: earlier digests hold
        # The best of them ends learning: a series with others at its beginning is another series
        first = min_steps(concept, stopping)
        depends = [scoring.model, prompt, stopping.clip.num_images, *sampling, *side, {"first": first}]
    settings = [stopping.rule, evaluation_interval(stopping), *depends]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def stopping_step(evaluations: np.ndarray, concept: Concept, stopping: StoppingConfig) -> int | None:
    """The first step at which the rule ends learning, or None while it doesn't.

    evaluations: (number so far,). Entries that are missing or not finite are skipped.
    """
    interval = evaluation_interval(stopping)
    known = np.flatnonzero(np.isfinite(evaluations))
    if stopping.rule == "dvar":
        ends = variance_ratios(evaluations[known], stopping.dvar.window) < stopping.dvar.threshold
    elif stopping.rule == "clip":
        # Those that `best_step` may choose
        known = known[known * interval >= max((0, *concept.vectors_added_at))]
        ends = evaluations_since_best(evaluations[known]) >= stopping.clip.patience
    else:
        return None
    steps = known * interval
    # Not before the last vector of a progressive extension has joined: that word isn't complete.
    found = steps[ends & (steps >= max(min_steps(concept, stopping), *concept.vectors_added_at, 0))]
    return int(found[0]) if len(found) else None


def best_step(evaluations: np.ndarray, concept: Concept, stopping: StoppingConfig) -> int | None:
    """The step of the best evaluation so far, the first of equals. None with another rule than `clip`, or without any.

    evaluations: (number so far,). Words that don't have all their vectors yet don't count.
    """
    if stopping.rule != "clip":
        return None
    steps = np.arange(len(evaluations)) * evaluation_interval(stopping)
    complete = steps >= max((0, *concept.vectors_added_at))
    scores = np.where(np.isfinite(evaluations) & complete, evaluations, -np.inf)
    return int(steps[scores.argmax()]) if (scores > -np.inf).any() else None


def variance_ratios(losses: np.ndarray, window: int) -> np.ndarray:
    """DVAR (Voronov et al. 2023, "Is This Loss Informative?"): Var(last `window` losses) / Var(all so far).

    One ratio per loss: (n,) -> (n,). NaN, which is below no threshold, before there are `window` losses and while
    all losses are equal.
    """
    ratios = np.full(len(losses), np.nan)
    if len(losses) >= window:
        # Relative to the first loss: E[x^2] - E[x]^2 loses digits where the mean is large
        centred = losses - losses[0]
        counts = np.arange(1, len(losses) + 1)
        total = np.cumsum(centred**2) / counts - (np.cumsum(centred) / counts) ** 2
        recent = np.lib.stride_tricks.sliding_window_view(centred, window).var(axis=1)
        whole = total[window - 1 :]
        np.divide(recent, whole, out=ratios[window - 1 :], where=whole > 0)
    return ratios


def evaluations_since_best(scores: np.ndarray) -> np.ndarray:
    """At each evaluation, how many evaluations ago the best score so far was first reached: (n,) -> (n,)."""
    before = np.maximum.accumulate(np.concatenate([[-np.inf], scores]))[:-1]
    places = np.arange(len(scores))
    return places - np.maximum.accumulate(np.where(scores > before, places, 0))


def fixed_batch(
    draws: Draws,
    latents: Mapping[str, Tensor],
    prompt_ids: Tensor,
    backbone: Backbone,
    *,
    stages: int,
    timesteps: TimestepsConfig,
) -> dict[str, Tensor]:
    """The batch of F samples that DVAR's loss is measured on: images, noise, levels and prompts are all fixed.

    draws: of a step with F samples; their levels are stratified, one in each F-th of the schedule. latents: the cached
    tensors of `cached_latents`. prompt_ids: int64 (stages * prompts, L), of the word with each of its numbers of
    vectors in turn. timesteps: how levels are drawn.
    Returns fixed_latents and fixed_noise (F, C, h, w), fixed_levels (F,), fixed_time_ids (F, 6), fixed_pixel_weights
    (F, 1, h, w), and fixed_ids (stages * F, L).
    """
    means, stds = latents["latent_means"], latents["latent_stds"]
    device, size = means.device, len(draws.levels)
    chosen, noise = draws.latents.to(device), draws.noise.to(device, means.dtype)
    levels = backbone.levels((torch.arange(size) + draws.levels) / size, timesteps, means.shape[-2:])
    by_stage = prompt_ids.reshape(stages, -1, prompt_ids.shape[1])
    return {
        "fixed_latents": means[chosen] + stds[chosen] * noise[0],
        "fixed_noise": noise[1],
        "fixed_levels": levels.to(device),
        "fixed_time_ids": latents["time_ids"][chosen],
        "fixed_pixel_weights": latents["pixel_weights"][chosen],
        "fixed_ids": by_stage[:, draws.prompts.to(device)].flatten(0, 1),
    }
