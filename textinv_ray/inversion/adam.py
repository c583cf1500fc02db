"""Adam for vectors that have taken different numbers of steps."""

from __future__ import annotations

from torch import Tensor

from textinv_ray.config.training import TrainingConfig


def step(
    vectors: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    updates: Tensor,
    rate: Tensor,
    training: TrainingConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam (Kingma and Ba 2015, algorithm 1) without weight decay. Returns new vectors, exp_avg and exp_avg_sq.

    vectors (theta), gradient (g), exp_avg (m), exp_avg_sq (v): (R, D). updates (t, from 1 on): (R, 1),
    because each row has its own. rate (alpha): (R, 1) or (R, D).
    """
    beta1, beta2 = training.adam_beta1, training.adam_beta2
    exp_avg = exp_avg.lerp(gradient, 1 - beta1)
    exp_avg_sq = exp_avg_sq * beta2 + gradient.square() * (1 - beta2)
    # In float64: 1 - 0.999^t loses most digits in float32 for small t
    correction1 = (1 - beta1 ** updates.double()).to(vectors.dtype)
    correction2 = (1 - beta2 ** updates.double()).sqrt().to(vectors.dtype)
    denominator = exp_avg_sq.sqrt() / correction2 + training.adam_epsilon
    return vectors - rate / correction1 * exp_avg / denominator, exp_avg, exp_avg_sq
