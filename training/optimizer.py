"""Muon for matrices and convolutions, Adam for the rest: fewer samples to the same loss than Adam alone.

Jordan et al. 2024 (Muon: momentum whose singular values are all made about one), with the step scaled as Liu et al.
2025 ("Muon is scalable for LLM training", section 2.2) do, so that learning rates mean what they mean for Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM, BETAS, EPSILON = 0.95, (0.9, 0.99), 1e-8
NOT_MATRICES = ("embedding", "table", "conv_in", "conv_out", "quant_conv")
"""Parts of the names of weights that Adam takes although they have two dimensions: tables, first and last layers."""


def groups_of(module: nn.Module, ratio: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups of a module, its matrices and the rest; `ratio` is that of the learning rate, for the caller."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            is_matrix = weight.ndim > 1 and not any(part in name for part in NOT_MATRICES)
            (matrices if is_matrix else others).append(weight)
    return [
        {"params": matrices, "ratio": ratio, "matrices": True},
        {"params": others, "ratio": ratio, "matrices": False},
    ]


def build_optimizer(
    name: str, groups: list[dict[str, Any]], rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """muon, or adam for all parameters."""
    if name == "muon":
        return Muon(groups, rate, weight_decay)
    return torch.optim.AdamW(groups, rate, BETAS, EPSILON, weight_decay, fused=True)


def orthogonalised(matrix: Tensor) -> Tensor:
    """(R, C) -> (R, C) with the same singular vectors and singular values near one, by five Newton-Schulz steps."""
    rows, columns = matrix.shape
    x = (matrix if rows <= columns else matrix.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return (x if rows <= columns else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Groups with `matrices` true are Muon's, the others Adam's; weight decay is decoupled in both."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                move = self._matrix_step if group["matrices"] else self._adam_step
                weight.sub_(move(weight, weight.grad), alpha=group["lr"])

    def _matrix_step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(state["momentum"], MOMENTUM).flatten(1)
        return (orthogonalised(ahead) * (0.2 * max(ahead.shape) ** 0.5)).view_as(weight)

    def _adam_step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["first"], state["second"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        state["first"].lerp_(gradient, 1 - BETAS[0])
        state["second"].lerp_(gradient.square(), 1 - BETAS[1])
        first, second = (1 - beta ** float(state["step"]) for beta in BETAS)
        return state["first"] / first / ((state["second"] / second).sqrt() + EPSILON)
