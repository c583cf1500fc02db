"""The judge's objective and the changes of its pictures."""

from __future__ import annotations

import math

import pytest
import torch

from training.judge import TEMPERATURE, changed, nt_xent


def test_nt_xent_is_the_cross_entropy_of_finding_the_other_view() -> None:
    features = torch.nn.functional.normalize(
        torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1
    )
    losses = []
    for index in range(6):
        cosines = {other: float(features[index] @ features[other]) for other in range(6) if other != index}
        total = sum(math.exp(cosine / TEMPERATURE) for cosine in cosines.values())
        losses.append(-math.log(math.exp(cosines[(index + 3) % 6] / TEMPERATURE) / total))
    assert float(nt_xent(3 * features)) == pytest.approx(sum(losses) / 6, abs=1e-5)


def test_changes_are_drawn_from_the_generator_and_keep_the_picture() -> None:
    images = torch.linspace(-1, 1, 64).expand(8, 3, 64, 64).contiguous()
    one, again, other = (changed(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    plain = torch.zeros(8, 3, 64, 64)
    differing = (changed(plain, torch.Generator().manual_seed(3)) != 0).flatten(1).any(1)
    assert 0 < differing.sum() < 8, "noise is added to some"
