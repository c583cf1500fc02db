"""Context regularisation: the term by its formula in every family, and its gradient within the step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import tiny, tiny_flow
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import context, words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask

PROMPTS = ("a {} on the beach", "{} with a dog", "the red {} in the house")
TERM: dict[str, Any] = {"context_weight": 0.7, "context_prompts": PROMPTS}


@pytest.fixture(scope="module")
def backbones(tiny_sd: Path, tiny_sdxl: Path, tiny_sd3: Path, tiny_flux: Path) -> dict[str, Backbone]:
    folders = {"sd": tiny_sd, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "flux": tiny_flux}
    return {
        name: load_backbone(str(folder), device="cpu", dtype="float32") for name, folder in folders.items()
    }


def moved(backbone: Backbone, count: int = 2) -> tuple[Tensor, Tensor]:
    """(vectors, initial), each (2, D)."""
    initial = words.initial_vectors(backbone, "cat", count)
    noise = torch.randn(initial.shape, generator=torch.Generator().manual_seed(1)).to(initial)
    return (initial + noise * initial.norm() / 10).requires_grad_(), initial


def by_hand(backbone: Backbone, ids: Tensor, vectors: Tensor, initial: Tensor, name: str) -> Tensor:
    """1 - cosine, averaged over the text's tokens in a loop; of one encoder and one prompt: ()."""
    (encoder,) = [encoder for encoder in backbone.encoders if encoder.name == name]
    states = [encoder.encode(ids[None], rows).hidden_states[0] for rows in (vectors, initial.detach())]
    known = set(encoder.tokenizer.all_special_ids)
    places = [
        place for place, id_ in enumerate(ids[encoder.tokens].tolist()) if id_ >= 0 and id_ not in known
    ]
    terms = [
        1 - states[0][place] @ states[1][place] / states[0][place].norm() / states[1][place].norm()
        for place in places
    ]
    assert len(terms) > 1
    return torch.stack(terms).mean()


@pytest.mark.parametrize(
    ("name", "acts_on"),
    [
        ("sd", {"clip_l"}),
        ("sdxl", {"clip_l", "clip_g"}),
        ("sd3", {"clip_l", "clip_g", "t5xxl"}),
        ("flux", {"t5xxl"}),  # of CLIP it reads the pooled state alone
    ],
)
def test_it_is_the_formula_for_each_encoder_whose_tokens_are_read(
    backbones: dict[str, Backbone], name: str, acts_on: set[str]
) -> None:
    backbone = backbones[name]
    vectors, initial = moved(backbone)
    ids = words.tokenize(backbone, [words.fill(prompt, "<x>") for prompt in PROMPTS], {"<x>": 2})
    found = context.losses(backbone, ids, vectors, initial, None)
    expected = torch.stack(
        [
            torch.stack([by_hand(backbone, line, vectors, initial, one) for one in acts_on]).sum()
            for line in ids
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), vectors, retain_graph=True)
    (by_formula,) = torch.autograd.grad(expected.sum(), vectors)
    torch.testing.assert_close(gradient, by_formula, rtol=1e-3, atol=1e-6)
    moving = {encoder.name for encoder in backbone.encoders if gradient[:, encoder.columns].any()}
    assert moving == acts_on

    one = sorted(acts_on)[0]
    alone = context.losses(backbone, ids, vectors, initial, [one])
    (gradient,) = torch.autograd.grad(alone.sum(), vectors)
    assert {encoder.name for encoder in backbone.encoders if gradient[:, encoder.columns].any()} == {one}


def test_an_unmoved_word_has_no_term_and_one_at_the_end_changes_no_token(backbone64: StableDiffusion) -> None:
    vectors, initial = moved(backbone64, 1)
    ids = words.tokenize(backbone64, ["a photo of <x>", "<x> in a house", "<x>"], {"<x>": 1})
    last, first, alone = context.losses(backbone64, ids, vectors, initial, None).tolist()
    assert last == pytest.approx(0, abs=1e-12), "CLIP's attention is causal"
    assert first > 1e-4
    assert alone == 0
    same = context.losses(backbone64, ids, initial.clone().requires_grad_(), initial, None)
    torch.testing.assert_close(same, torch.zeros_like(same))


@pytest.mark.parametrize(("every", "step"), [(1, 0), (1, 3), (3, 3), (3, 4)])
@pytest.mark.parametrize("loss_scale", [1.0, 4096.0])
def test_it_is_part_of_the_loss_every_so_many_steps(
    backbone64: StableDiffusion, every: int, step: int, loss_scale: float
) -> None:
    """Adam's first moment is (1 - beta1) times the gradient, with the term times `every` where it is due."""
    config = JobConfig()
    plain = ConceptTask(tiny.concept(steps=6, num_vectors=2), backbone64, config)
    with_term = ConceptTask(
        tiny.concept(steps=6, num_vectors=2, context_every=every, **TERM), backbone64, config
    )
    start, _ = moved(backbone64)
    for task in (plain, with_term):
        task.step = step
        task.tensors["vectors"].copy_(start.detach())
        task.tensors["loss_scale"].fill_(loss_scale)
    drawn = with_term.context_prompt
    assert (drawn is None) == (step % every > 0)
    expected = torch.zeros_like(start)
    if drawn is not None:
        ids = with_term.tensors["context_ids"][drawn]
        term = 0.7 * every * by_hand(backbone64, ids, start, plain.tensors["initial"], "clip_l")
        (expected,) = torch.autograd.grad(term, start)
    for task in (plain, with_term):
        pack = Pack(backbone64, config, 1)
        pack.add(task)
        pack.step()
        pack.remove(task)
    difference = with_term.tensors["exp_avg"] - plain.tensors["exp_avg"]
    torch.testing.assert_close(difference, 0.1 * expected, rtol=1e-6, atol=1e-12)
    assert with_term.tensors["losses"][step] == plain.tensors["losses"][step], "the denoising loss alone"


def test_its_draws_are_its_own(backbone64: StableDiffusion) -> None:
    """Each prompt comes up about as often; nothing else is drawn otherwise; a later vector's prompts have it."""
    task = ConceptTask(tiny.concept(steps=300, vectors_added_at=(200,), **TERM), backbone64, JobConfig())
    plain = ConceptTask(tiny.concept(steps=300, vectors_added_at=(200,)), backbone64, JobConfig())
    seen: Counter[int] = Counter()
    for step in range(300):
        task.step = plain.step = step
        drawn = task.context_prompt
        assert drawn is not None
        assert (drawn >= len(PROMPTS)) == (step >= 200)
        assert task.tensors["context_ids"][drawn].min() == (-2 if step >= 200 else -1)
        seen[drawn % len(PROMPTS)] += 1
        if step % 100 == 0:
            for one, other in zip(vars(task.draw()).values(), vars(plain.draw()).values(), strict=True):
                assert torch.equal(one, other)
    assert min(seen.values()) > 70
    assert len(plain.tensors["context_ids"]) == 0


def test_where_it_has_no_effect_it_is_refused(
    backbones: dict[str, Backbone], tiny_sana: Path, tiny_flux2_klein: Path
) -> None:
    sana = tiny_flow.load_sana(tiny_sana)
    with pytest.raises(ValueError, match=r"context_weight: .* CLIP and T5 \(of Sana: none\)"):
        ConceptTask(tiny.concept(**TERM), sana, JobConfig())
    flux = backbones["flux"]
    with pytest.raises(ValueError, match=r"\(of Flux.1: t5xxl\)"):
        context.check(tiny.concept(**TERM), flux, ["clip_l"])
    context.check(tiny.concept(**TERM), flux, ["clip_l", "t5xxl"])
    context.check(tiny.concept(), sana, None)
