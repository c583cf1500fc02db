"""Directional steps: on the sphere of each text encoder, by the angle that the rate says, against the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from textinv_ray.inversion import directional

NORMS = [(slice(0, 3), 0.4), (slice(3, 7), 2.0)]


def on_the_spheres(rows: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parts = [norm * torch.nn.functional.normalize(drawn[:, columns], dim=1) for columns, norm in NORMS]
    return torch.cat(parts, dim=1)


def take(vectors: Tensor, gradient: Tensor, initial: Tensor, rate: float, prior: float = 0.0) -> Tensor:
    column = torch.ones(len(vectors), 1, dtype=vectors.dtype)
    return directional.step(vectors, gradient, initial, rate=rate * column, prior=prior * column, norms=NORMS)


@pytest.mark.parametrize("rate", [0.01, 0.05, 1.0])
def test_a_step_turns_each_encoders_part_by_the_arc_tangent_of_the_rate(rate: float) -> None:
    vectors, gradient = on_the_spheres(5, 0), torch.randn(5, 7, dtype=torch.float64) * 1e-3
    turned = take(vectors, gradient, on_the_spheres(5, 1), rate)
    for columns, norm in NORMS:
        torch.testing.assert_close(turned[:, columns].norm(dim=1), torch.full((5,), norm).double())
        cosine = (turned[:, columns] * vectors[:, columns]).sum(dim=1) / norm**2
        torch.testing.assert_close(cosine.acos(), torch.full((5,), math.atan(rate)).double())


@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_it_descends_along_the_gradient_on_the_sphere(prior: float) -> None:
    """Along minus the gradient of loss(m v / |v|) - prior <mu, v / |v|> by v, as autograd has it."""
    vectors, initial = on_the_spheres(4, 2), on_the_spheres(4, 3)
    weights = torch.linspace(-1, 2, 28, dtype=torch.float64).reshape(4, 7)
    gradient = weights + 2 * vectors  # of the loss (weights * x).sum() + (x ** 2).sum()
    turned = take(vectors, gradient, initial, 0.03, prior)
    for columns, norm in NORMS:
        v = (vectors[:, columns] / norm).requires_grad_()
        unit = torch.nn.functional.normalize(v, dim=1)
        towards = initial[:, columns] / norm
        loss = (weights[:, columns] * norm * unit).sum() + (norm * unit).square().sum()
        (tangent,) = torch.autograd.grad(loss - prior * (towards * unit).sum(), v)
        expected = v - 0.03 * tangent / tangent.norm(dim=1, keepdim=True)
        expected = norm * torch.nn.functional.normalize(expected, dim=1)
        torch.testing.assert_close(turned[:, columns], expected.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_step_without_a_direction(dtype: torch.dtype) -> None:
    """Where the gradient is zero, or points along the vector, or only the prior acts at its own centre."""
    vectors = on_the_spheres(3, 4).to(dtype)
    gradient = torch.stack([torch.zeros(7), vectors[1].float() * 5, torch.zeros(7)]).to(dtype)
    turned = take(vectors, gradient, vectors, 0.5, prior=1e-4)
    torch.testing.assert_close(turned, vectors)


def test_the_prior_turns_towards_the_initial_direction() -> None:
    vectors, initial = on_the_spheres(4, 5), on_the_spheres(4, 6)
    turned = take(vectors, torch.zeros_like(vectors), initial, 0.1, prior=1e-6)
    for columns, _ in NORMS:
        before = (vectors[:, columns] * initial[:, columns]).sum(dim=1)
        assert ((turned[:, columns] * initial[:, columns]).sum(dim=1) > before).all()
