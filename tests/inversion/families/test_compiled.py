"""The padding around a compiled denoiser. Whether steps are compiled at all: test_tuning.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.support import tiny
from textinv_ray.inversion import words
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion


@pytest.fixture(autouse=True)
def no_compilation_stays() -> Iterator[None]:
    yield
    torch.compiler.reset()


class Sum(nn.Module):
    """Adds up what it is given, sample by sample, and notes how many samples these were."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[int] = []

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        return (torch.stack([part.flatten(1).sum(dim=1) for part in inputs]).sum(dim=0),)


def uncompiled(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
    return module.forward


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("parts", ["hidden states", "all"])
def test_smaller_batches_are_padded_to_one_shape(count: int, parts: str) -> None:
    """Every tensor is, and what comes back is of the samples that were given."""
    sizes, compilations = [], []

    def compiler(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        compilations.append([tuple(part.shape) for part in inputs])
        return module.forward

    def denoise(
        model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        given = [noisy, levels[:, None], *(part for part in condition if part is not None)]
        sizes.append({len(part) for part in given})
        return model(*given)[0]

    noisy, levels = torch.rand(4, 2, 3, 3), torch.rand(4)
    condition = Condition(torch.rand(4, 5, 6))
    if parts == "all":
        condition = Condition(torch.rand(4, 5, 6), torch.rand(4, 7), torch.rand(4, 6))
    compiled = CompiledDenoiser(Sum(), 4, compiler)
    given = noisy[:count], levels[:count], condition.map(lambda part: part[:count])
    expected = denoise(Sum(), *given)
    assert sizes.pop() == {count}
    torch.testing.assert_close(compiled(denoise, *given), expected)
    torch.testing.assert_close(
        compiled(denoise, noisy, levels, condition), denoise(Sum(), noisy, levels, condition)
    )
    assert sizes[:2] == [{4}, {4}]
    assert len(compilations) == 1, "one shape"


@pytest.mark.slow  # compiles
def test_the_backbone_uses_it_for_gradients_of_as_many_samples(backbone64: StableDiffusion) -> None:
    """What it computes is what the denoiser does, gradients included."""
    calls = []

    def compiler(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        def counted(*inputs: Tensor) -> object:
            calls.append(len(inputs))
            return module.forward(*inputs)

        return counted

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, *tiny.LATENT_SHAPE, generator=generator, dtype=torch.float64)
    levels = torch.tensor([5, 300, 900])
    ids = words.tokenize(backbone64, ["a <x>", "my <x>", "the red <x>"], {"<x>": 1})
    rows = torch.randn(1, 32, generator=generator, dtype=torch.float64).requires_grad_()

    def gradient(count: int) -> Tensor:
        condition = backbone64.encode(ids[:count], rows)
        prediction = backbone64.predict(latents[:count], levels[:count], condition)
        return torch.autograd.grad(prediction.square().sum(), rows)[0]

    expected = [gradient(count) for count in (1, 2, 3)]
    backbone64.compiled = CompiledDenoiser(backbone64.denoiser, 2, compiler)
    try:
        for count, known in enumerate(expected, start=1):
            before = len(calls)
            torch.testing.assert_close(gradient(count), known, rtol=0, atol=1e-9)
            assert (len(calls) > before) == (count <= 2)
        before = len(calls)
        with torch.no_grad():
            backbone64.predict(latents[:2], levels[:2], backbone64.encode(ids[:2], rows))
        assert len(calls) == before, "where no gradient is needed, it isn't used"
    finally:
        backbone64.compiled = None


def test_a_condition_without_some_parts() -> None:
    """`map` leaves out what isn't there."""
    doubled = Condition(torch.ones(1, 2, 3)).map(lambda part: part * 2)
    assert torch.equal(doubled.hidden_states, torch.full((1, 2, 3), 2.0))
    assert (doubled.pooled, doubled.time_ids) == (None, None)
    doubled = Condition(torch.ones(1, 2, 3), torch.ones(1, 4), torch.ones(1, 6)).map(lambda part: part * 2)
    assert doubled.pooled is not None
    assert doubled.time_ids is not None
    assert (float(doubled.pooled.sum()), float(doubled.time_ids.sum())) == (8.0, 12.0)
