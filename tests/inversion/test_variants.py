"""The paper's variants: what each does, that packed equals alone, and that resumed equals uninterrupted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import tiny
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import initialization, penalties, words
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask

CONFIG = JobConfig.from_dict({"training": {"max_grad_norm": 0.5, "lr_schedule": "cosine"}})
CANDIDATES = ("cat", "dog", "house")
NEIGHBOUR = {"clip_l": tuple(tuple(row) for row in (torch.arange(64.0).reshape(2, 32) / 100).tolist())}
VARIANTS: dict[str, dict[str, Any]] = {
    "one vector": {},
    "three vectors": {"num_vectors": 3},
    "progressive": {"vectors_added_at": (2, 3)},
    "regularized": {"regularization_weight": 0.5},
    "per image": {"per_image_probability": 0.5},
    "rescaled": {"norm_control": "rescale", "num_vectors": 2},
    "norm": {"norm_control": "regularize", "norm_weight": 0.3},
    "directional": {"optimizer": "directional", "learning_rate": 0.04, "num_vectors": 2},
    "direction prior": {
        "optimizer": "directional",
        "learning_rate": 0.2,
        "direction_prior": 0.3,
        "vectors_added_at": (2,),
    },
    "context": {"context_weight": 0.5, "context_prompts": ("{} on the beach", "a {} with a dog")},
    "context at times": {
        "context_weight": 0.2,
        "context_every": 2,
        "context_prompts": ("{} on the beach", "a {} with a dog", "my {} in the house"),
        "vectors_added_at": (2,),
    },
    "captions": {"captions": ("a red {}", "a {} on the beach")},
    "mean": {"init_from": "vocabulary_mean", "initializer_token": ""},
    "neighbour": {"init_from": "a.safetensors", "initializer_token": "", "initial_vectors": NEIGHBOUR},
    "auto": {"init_from": "auto", "initializer_token": "", "initializer_candidates": CANDIDATES},
    "all": {
        "vectors_added_at": (1, 4),
        "num_vectors": 2,
        "regularization_weight": 0.1,
        "per_image_probability": 0.7,
        "norm_control": "rescale",
        "context_weight": 0.3,
        "context_prompts": ("{} on the beach",),
        "captions": ("a red {}",),
    },
}


def concept(name: str, **changes: Any) -> Concept:
    index = list(VARIANTS).index(name)
    return tiny.concept(index, **{"steps": 5 + index % 3, **VARIANTS[name], **changes})


def take(tasks: list[ConceptTask], backbone: StableDiffusion, steps: int, config: JobConfig = CONFIG) -> None:
    """Learns them in one pack, for this many steps or to their ends."""
    pack = Pack(backbone, config, len(tasks))
    for task in tasks:
        pack.add(task)
    for _ in range(steps):
        if pack.tasks:
            pack.step()
    for task in list(pack.tasks):
        pack.remove(task)


def assert_same(task: ConceptTask, expected: ConceptTask) -> None:
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(
            task.state_dict()[name], value, rtol=0, atol=1e-9, equal_nan=True, msg=name
        )


@pytest.fixture(scope="module")
def alone(backbone64: StableDiffusion) -> dict[str, ConceptTask]:
    """Each variant, learned in a pack of one without interruption."""
    tasks = {name: ConceptTask(concept(name), backbone64, CONFIG) for name in VARIANTS}
    for task in tasks.values():
        take([task], backbone64, 99)
    return tasks


def test_packed_equals_alone(backbone64: StableDiffusion, alone: dict[str, ConceptTask]) -> None:
    tasks = {name: ConceptTask(concept(name), backbone64, CONFIG) for name in VARIANTS}
    take(list(tasks.values()), backbone64, 99)
    for name, task in tasks.items():
        assert task.done, name
        assert_same(task, alone[name])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_resumed_equals_uninterrupted(
    backbone64: StableDiffusion, alone: dict[str, ConceptTask], name: str, at: int
) -> None:
    task = ConceptTask(concept(name), backbone64, CONFIG)
    take([task], backbone64, at)
    resumed = ConceptTask(concept(name), backbone64, CONFIG)
    resumed.restore(task.to_bytes())
    take([resumed], backbone64, 99)
    assert resumed.to_bytes() == alone[name].to_bytes()
    assert torch.equal(resumed.vectors, alone[name].vectors)


def test_variants_differ(alone: dict[str, ConceptTask], backbone64: StableDiffusion) -> None:
    """From the same seed and images, no variant gives the word of plain inversion."""
    same = {"steps": 6, "seed": 3, "images": tiny.concept(0).images}
    ends = []
    for name in VARIANTS:
        task = ConceptTask(concept(name, **same), backbone64, CONFIG)
        take([task], backbone64, 6)
        ends.append(task.vectors[0])
    for index, one in enumerate(ends):
        assert not any(torch.allclose(one, other, atol=1e-5) for other in ends[:index])


# Progressive


def test_vectors_join_exactly_at_their_steps(backbone64: StableDiffusion) -> None:
    """Before its step a vector keeps its initial value; the other vectors keep their values and moments."""
    task = ConceptTask(tiny.concept(steps=6, vectors_added_at=(2, 4)), backbone64, CONFIG)
    first = task.tensors["vectors"].clone()
    pack = Pack(backbone64, CONFIG, 1)
    pack.add(task)
    for step in range(6):
        joined = 1 + (step >= 2) + (step >= 4)
        assert task.vectors.shape == (joined, 32)
        before = task.state_dict()
        drawn = task.tensors["prompt_ids"][task.draw().prompts]
        assert (drawn.min(dim=1).values == -joined).all(), "every prompt has all vectors so far"
        pack.step()
        after = task.state_dict()
        for row in range(3):
            moved = not torch.equal(after["vectors"][row], before["vectors"][row])
            assert moved == (row < joined)
        # A vector that isn't there yet: as it began, without moments
        assert torch.equal(after["vectors"][joined:], first[joined:])
        assert not after["exp_avg"][joined:].any()
        assert not after["exp_avg_sq"][joined:].any()
    assert after["updates_before"].tolist() == [0, 2, 4]


def test_joining_leaves_the_other_vectors_as_they_are(backbone64: StableDiffusion) -> None:
    """Before the step at which a vector joins, the run equals the one without it."""
    plain = ConceptTask(tiny.concept(steps=6), backbone64, JobConfig())
    growing = ConceptTask(tiny.concept(steps=6, vectors_added_at=(3,)), backbone64, JobConfig())
    for task in (plain, growing):
        take([task], backbone64, 3, JobConfig())
    for name in ("vectors", "exp_avg", "exp_avg_sq"):
        assert torch.equal(growing.state_dict()[name][:1], plain.state_dict()[name])
    assert torch.equal(growing.vectors[1:], growing.initial_vectors)


def test_a_vectors_first_step_is_adams_first(backbone64: StableDiffusion) -> None:
    """Its bias correction counts from its own first update: |step| is the learning rate, not 3 times that."""
    config = JobConfig.from_dict({"training": {"adam_epsilon": 1e-20}})
    task = ConceptTask(tiny.concept(steps=6, vectors_added_at=(4,)), backbone64, config)
    take([task], backbone64, 4, config)
    before = task.tensors["vectors"][1].clone()
    take([task], backbone64, 1, config)
    moved = (task.tensors["vectors"][1] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, task.concept.learning_rate), rtol=1e-4, atol=0)


# Regularisation and norms

rows = st.integers(1, 4).flatmap(
    lambda count: st.lists(
        st.lists(st.floats(-2, 2), min_size=3, max_size=3), min_size=count, max_size=count
    ).map(lambda values: torch.tensor(values, dtype=torch.float64))
)


@given(vectors=rows, weight=st.floats(0, 3), norm=st.floats(0.1, 2))
def test_gradients_are_those_of_the_formulas(vectors: Tensor, weight: float, norm: float) -> None:
    initial = torch.full_like(vectors, 0.25)
    weights = torch.full((len(vectors), 1), weight, dtype=torch.float64)
    leaf = vectors.clone().requires_grad_()
    (expected,) = torch.autograd.grad((weight * (leaf - initial).square()).sum(), leaf)
    torch.testing.assert_close(penalties.regularization_gradient(vectors, initial, weights), expected)
    if (vectors.norm(dim=1) > 1e-6).all():
        (expected,) = torch.autograd.grad((weight * (leaf.norm(dim=1) - norm).square()).sum(), leaf)
        torch.testing.assert_close(penalties.norm_gradient(vectors, [(slice(3), norm)], weights), expected)


@pytest.mark.parametrize(
    "options",
    [{"regularization_weight": 0.7}, {"norm_control": "regularize", "norm_weight": 0.7}],
    ids=["regularization", "norm"],
)
@pytest.mark.parametrize("loss_scale", [1.0, 4096.0])
def test_the_penalty_is_part_of_the_loss(
    backbone64: StableDiffusion, options: dict[str, Any], loss_scale: float
) -> None:
    """Adam's first moment of the step is (1 - beta1) times the gradient of denoising loss plus penalty."""
    task = ConceptTask(tiny.concept(num_vectors=2, **options), backbone64, JobConfig())
    shifted = task.tensors["vectors"] + torch.linspace(-0.2, 0.3, 64, dtype=torch.float64).reshape(2, 32)
    task.tensors["vectors"].copy_(shifted)
    task.tensors["loss_scale"].fill_(loss_scale)
    draws = task.draw()
    leaf = shifted.clone().requires_grad_()
    latents = task.tensors["latent_means"][draws.latents]
    latents = latents + task.tensors["latent_stds"][draws.latents] * draws.noise[0]
    condition = backbone64.encode(task.tensors["prompt_ids"][draws.prompts], leaf)
    noise = draws.noise[1].double()
    levels = backbone64.levels(draws.levels)
    loss = backbone64.denoising_loss(latents, noise, levels, condition).mean()
    if "regularization_weight" in options:
        start = words.initial_vectors(backbone64, "cat", 2)
        penalty = 0.7 * (leaf - start).square().sum()
    else:
        table = backbone64.text_encoder.get_input_embeddings().weight.data
        penalty = 0.7 * (leaf.norm(dim=1) - table.norm(dim=1).mean()).square().sum()
    (expected,) = torch.autograd.grad(loss + penalty, leaf)
    take([task], backbone64, 1, JobConfig())
    torch.testing.assert_close(task.tensors["exp_avg"], 0.1 * expected, rtol=1e-7, atol=1e-12)
    assert task.loss_history.item() == pytest.approx(loss.item()), (
        "the history shows the denoising loss alone"
    )


def test_rescaled_vectors_have_the_vocabularys_norm(backbone64: StableDiffusion) -> None:
    table = backbone64.text_encoder.get_input_embeddings().weight.data
    task = ConceptTask(concept("rescaled", learning_rate=0.3), backbone64, CONFIG)
    for _ in range(3):
        expected = table.norm(dim=1).mean().expand(2)
        torch.testing.assert_close(task.tensors["vectors"].norm(dim=1), expected)
        take([task], backbone64, 1)


def test_a_step_that_is_skipped_rescales_nothing(backbone64: StableDiffusion) -> None:
    task = ConceptTask(concept("rescaled"), backbone64, CONFIG)
    task.tensors["vectors"].mul_(2)
    task.tensors["latent_means"].fill_(torch.nan)
    before = task.tensors["vectors"].clone()
    take([task], backbone64, 1)
    assert torch.equal(task.tensors["vectors"], before)


# Words of single images


def test_an_images_word_learns_from_its_image_alone(backbone64: StableDiffusion) -> None:
    """The gradient of an image's word is 0 exactly in the steps whose samples don't use that word."""
    config = JobConfig.from_dict({"training": {"adam_beta1": 0.0}})
    task = ConceptTask(tiny.concept(steps=12, per_image_probability=0.5), backbone64, config)
    seen = set()
    for _ in range(12):
        draws = task.draw()
        rows = -1 - task.tensors["prompt_ids"][draws.prompts]
        images = draws.latents // 2  # a crop and its mirror image each
        beside: dict[int, None] = {}
        for line, image in zip(rows, images.tolist(), strict=True):
            named = [row - 1 for row in line[line > 0].tolist()]
            assert named in ([], [image])
            beside |= dict.fromkeys(named)
        take([task], backbone64, 1, config)
        # Without momentum the first moment is this step's gradient.
        gradient = task.tensors["exp_avg"]
        assert gradient[0].any()
        assert {row - 1 for row in range(1, 4) if gradient[row].any()} == set(beside)
        seen |= set(beside)
    assert seen == {0, 1, 2}
    assert task.vectors.shape == (1, 32), "they are no part of the word"


@settings(max_examples=10, deadline=None)
@given(probability=st.floats(0.05, 1))
def test_how_often_an_images_word_stands_beside(backbone64: StableDiffusion, probability: float) -> None:
    task = ConceptTask(
        tiny.concept(batch_size=4000, per_image_probability=probability, num_vectors=2), backbone64, CONFIG
    )
    draws = task.draw()
    rows = -1 - task.tensors["prompt_ids"][draws.prompts]
    assert ((rows >= 2).any(dim=1).double().mean() - probability).abs() < 0.05
    plain = ConceptTask(tiny.concept(batch_size=4000, num_vectors=2), backbone64, CONFIG).draw()
    assert torch.equal(draws.latents, plain.latents)
    assert torch.equal(draws.prompts % 3, plain.prompts), "the same templates as without"


def test_prompts_of_a_growing_word_beside_images_words(backbone64: StableDiffusion) -> None:
    """Rows are the word's vectors in the order of joining, then the images'."""
    grown = tiny.concept(templates=("{}",), per_image_probability=1.0, vectors_added_at=(2,), steps=4)
    rows = -1 - ConceptTask(grown, backbone64, CONFIG).tensors["prompt_ids"]
    word_with = [[0], [0, 2], [0, 3], [0, 4], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 4]]
    assert [line[line >= 0].tolist() for line in rows] == word_with


# Captions


def test_captions_reach_the_encoder(backbone64: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids that the encoder is given for an image with a caption are the caption's, word included."""
    given: list[Tensor] = []
    encode = StableDiffusion.encode

    def spy(self: StableDiffusion, input_ids: Tensor, *others: Tensor | None, **options: Any) -> Condition:
        given.append(input_ids)
        return encode(self, input_ids, *others, **options)

    captions = ("a red {}", "one {} on the beach", "my {} with a blue background")
    task = ConceptTask(tiny.concept(captions=captions, batch_size=6), backbone64, CONFIG)
    images = task.draw().latents // 2
    monkeypatch.setattr(StableDiffusion, "encode", spy)
    take([task], backbone64, 1)
    expected = words.tokenize(backbone64, [words.fill(text, "<c0>") for text in captions], {"<c0>": 1})
    assert torch.equal(given[0], expected[images])


# Where learning starts


def test_the_vocabularys_mean(backbone64: StableDiffusion) -> None:
    task = ConceptTask(concept("mean", num_vectors=2), backbone64, CONFIG)
    table = backbone64.text_encoder.get_input_embeddings().weight.data
    torch.testing.assert_close(task.tensors["vectors"], table.mean(dim=0).expand(2, -1))
    assert task.start is not None, "there is no text to compare with"


def test_another_word(backbone64: StableDiffusion) -> None:
    task = ConceptTask(concept("neighbour", num_vectors=2), backbone64, CONFIG)
    torch.testing.assert_close(task.vectors, torch.tensor(NEIGHBOUR["clip_l"]))
    assert task.start is not None
    assert torch.equal(task.start, task.vectors)
    other = {"clip_l": ((1.0, 2.0, 3.0),)}
    message = (
        r"init_from x.safetensors: the word .* has vectors for clip_l \(3\), this .* takes clip_l \(32\)"
    )
    with pytest.raises(ValueError, match=message):
        ConceptTask(
            concept("neighbour", init_from="x.safetensors", initial_vectors=other), backbone64, CONFIG
        )


def test_auto_takes_the_candidate_with_the_lowest_loss(backbone64: StableDiffusion) -> None:
    """Compared with the loss written out, in any order of candidates; unknown words are skipped."""
    base = concept("auto")
    task = ConceptTask(base, backbone64, CONFIG)
    chosen = task.concept.initializer_token
    assert chosen in CANDIDATES
    assert torch.equal(task.tensors["vectors"], words.initial_vectors(backbone64, chosen, 1))
    assert task.start is None

    means = task.tensors["latent_means"][torch.arange(8) % 3 * 2]
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(base.seed)).double()
    timesteps = torch.tensor([62, 187, 312, 437, 562, 687, 812, 937])
    losses = {}
    for text in CANDIDATES:
        prompts = [base.templates[index % 3].replace("{}", text) for index in range(8)]
        condition = backbone64.encode(words.tokenize(backbone64, prompts))
        losses[text] = backbone64.denoising_loss(means, noise, timesteps, condition).mean().item()
    assert chosen == min(losses, key=losses.__getitem__)
    assert len(set(losses.values())) == 3
    for candidates in (CANDIDATES[::-1], (" ", *CANDIDATES)):
        again = concept("auto", initializer_candidates=candidates)
        assert ConceptTask(again, backbone64, CONFIG).concept.initializer_token == chosen
    with pytest.raises(ValueError, match="no candidate gives a token"):
        initialization.choose_initializer(
            backbone64,
            concept("auto", initializer_candidates=(" ",)),
            task.tensors["latent_means"],
            task.tensors["time_ids"],
        )
