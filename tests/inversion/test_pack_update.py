"""The packed update: loss scale, skipped steps and failure are per concept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from textinv_ray.config.training import TrainingConfig
from textinv_ray.inversion import directional
from textinv_ray.inversion.pack import LOSS_SCALE_GROWTH_STEPS, update


def state_of(count: int, loss_scale: float = 1.0) -> dict[str, Tensor]:
    """Stacked state of `count` concepts of one vector each."""
    zeros = torch.zeros(count, dtype=torch.int64)
    return {
        "vectors": torch.ones(count, 3),
        "exp_avg": torch.zeros(count, 3),
        "exp_avg_sq": torch.zeros(count, 3),
        "updates": zeros.clone(),
        "loss_scale": torch.full((count,), loss_scale),
        "finite_steps": zeros.clone(),
        "nonfinite_steps": zeros.clone(),
        "failed_at": zeros - 1,
    }


def take(
    state: dict[str, Tensor], gradient: Tensor, losses: list[float], step: int = 0, scaled: bool = True
) -> None:
    count = len(losses)
    update(
        state,
        gradient,
        torch.tensor(losses),
        concept_of_row=torch.arange(count),
        rates=torch.full((count,), 0.1),
        steps=torch.full((count,), step),
        training=TrainingConfig(max_nonfinite_steps=2),
        scaled=scaled,
    )


def test_an_overflow_halves_one_concepts_scale_and_skips_its_step_alone() -> None:
    state = state_of(2, loss_scale=1024.0)
    take(state, torch.tensor([[math.inf, 1.0, 1.0], [1024.0, 1024.0, 1024.0]]), [0.5, 0.5])
    assert state["loss_scale"].tolist() == [512.0, 1024.0]
    assert state["updates"].tolist() == [0, 1]
    assert state["nonfinite_steps"].tolist() == [0, 0]  # the scale was to blame
    assert torch.equal(state["vectors"][0], torch.ones(3))
    torch.testing.assert_close(state["vectors"][1], torch.full((3,), 0.9))


def test_the_scale_does_not_change_the_step() -> None:
    gradient = torch.tensor([[0.3, -2.0, 1e-3]])
    plain, scaled = state_of(1), state_of(1, loss_scale=4096.0)
    for _ in range(3):
        take(plain, gradient, [0.5], scaled=False)
        take(scaled, gradient * 4096, [0.5])
    assert torch.equal(plain["vectors"], scaled["vectors"])


def test_a_loss_that_is_not_finite_is_not_the_scales_fault() -> None:
    state = state_of(1, loss_scale=1024.0)
    for step in range(3):
        take(state, torch.full((1, 3), math.nan), [math.nan], step)
        assert state["failed_at"].item() == (-1 if step == 0 else 1)
    assert state["loss_scale"].item() == 1024.0


def test_a_gradient_that_overflows_at_any_scale_fails() -> None:
    state = state_of(1, loss_scale=4.0)
    for step in range(4):
        take(state, torch.full((1, 3), math.inf), [0.5], step)
    assert state["loss_scale"].item() == 1.0
    assert state["failed_at"].item() == 3


def test_a_failed_concept_stays_as_it_was() -> None:
    state = state_of(1)
    state["failed_at"].fill_(5)
    take(state, torch.ones(1, 3), [0.5], 6)
    assert torch.equal(state["vectors"], torch.ones(1, 3))
    assert state["failed_at"].item() == 5


def test_the_scale_grows_again() -> None:
    state = state_of(2, loss_scale=8.0)
    state["finite_steps"][0] = LOSS_SCALE_GROWTH_STEPS - 1
    take(state, torch.ones(2, 3), [0.5, 0.5])
    assert state["loss_scale"].tolist() == [16.0, 8.0]
    assert state["finite_steps"].tolist() == [0, 1]


def test_without_scaling_there_is_no_scale() -> None:
    state = state_of(1)
    state["finite_steps"][0] = LOSS_SCALE_GROWTH_STEPS
    take(state, torch.ones(1, 3), [0.5], scaled=False)
    assert state["loss_scale"].item() == 1.0


def test_the_largest_norm_of_a_gradient_is_not_for_directional_steps() -> None:
    """Their gradient counts against the prior, so that it must stay as long as it is."""
    gradient = torch.tensor([[0.3, -2.0, 1e-3]])
    words = []
    for most in (None, 1e-3):
        state = state_of(1) | {"initial": torch.tensor([[1.0, 0.0, 0.0]])}
        update(
            state,
            gradient,
            torch.tensor([0.5]),
            concept_of_row=torch.arange(1),
            rates=torch.tensor([0.1]),
            steps=torch.tensor([0]),
            training=TrainingConfig(max_grad_norm=most),
            scaled=False,
            encoder_norms=[(slice(0, 3), 1.0)],
            turning=directional.Rows(torch.tensor([[True]]), torch.tensor([[0.5]])),
        )
        words.append(state["vectors"])
    assert torch.equal(*words)
