"""Muon's steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from training.optimizer import Muon, groups_of, orthogonalised


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.4
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    along = (left.T @ orthogonalised(matrix) @ right.T).diagonal()
    assert along.min() > 0.5


def test_tables_and_outer_layers_are_adams() -> None:
    module: Any = nn.ModuleDict(
        {"conv_in": nn.Conv2d(3, 4, 3), "middle": nn.Conv2d(4, 4, 3), "embedding": nn.Embedding(5, 4)}
    )
    matrices, others = groups_of(module)
    assert [id(weight) for weight in matrices["params"]] == [id(module["middle"].weight)]
    assert len(others["params"]) == 4


def test_it_learns_and_what_is_frozen_stays() -> None:
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 3))
    module[0].bias.requires_grad_(False)
    before, inputs = module[0].bias.clone(), torch.randn(64, 6)
    target = inputs[:, :3] * inputs[:, 3:]
    optimizer, losses = Muon(groups_of(module), 0.01, 0.0), list[float]()
    for _ in range(150):
        loss = (module(inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    torch.testing.assert_close(module[0].bias, before, rtol=0, atol=0)
