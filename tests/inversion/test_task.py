from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from textinv_ray.config.job import JobConfig, TrainingConfig
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask, learning_rate

CONFIG = JobConfig()


def run(task: ConceptTask, backbone: StableDiffusion, steps: int) -> ConceptTask:
    """Takes this many steps in a pack of its own."""
    pack = Pack(backbone, CONFIG, 1)
    pack.add(task)
    for _ in range(steps):
        pack.step()
    if task in pack.tasks:
        pack.remove(task)
    return task


def same_draws(task: ConceptTask, other: ConceptTask) -> bool:
    one, two = task.draw(), other.draw()
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in vars(one))


def test_draws_depend_on_seed_and_step_alone(backbone: StableDiffusion) -> None:
    task = ConceptTask(tiny.concept(0, seed=2**62), backbone, CONFIG)
    twin = ConceptTask(tiny.concept(5, seed=2**62), backbone, CONFIG)
    other = ConceptTask(tiny.concept(0, seed=2**62 + 1), backbone, CONFIG)
    torch.manual_seed(123)
    assert same_draws(task, twin)
    assert same_draws(task, task)
    assert not same_draws(task, other)
    twin.step = 1
    assert not same_draws(task, twin)


def test_draws_are_pinned(backbone: StableDiffusion) -> None:
    """Pinned, because other draws would make resumed concepts differ from uninterrupted ones."""
    task = ConceptTask(tiny.concept(seed=7, batch_size=4), backbone, CONFIG)
    task.step = 3
    draws = task.draw()
    assert backbone.levels(draws.levels).tolist() == [155, 675, 354, 788]
    assert draws.latents.tolist() == [0, 5, 3, 4]
    assert draws.noise[0, 0, 0, 0, :2].tolist() == pytest.approx([-1.476673, -0.480337], abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 5),
    crops=st.integers(1, 3),
    captions=st.integers(0, 5),
    flips=st.sampled_from([0.0, 0.5, 1.0]),
    step=st.integers(0, 3),
)
def test_draws_stay_in_range(
    backbone: StableDiffusion, images: int, crops: int, captions: int, flips: float, step: int
) -> None:
    captions = min(captions, images)
    concept = tiny.concept(
        batch_size=64,
        images=np.zeros((images, crops, 16, 16, 3), dtype=np.uint8),
        captions=tuple(f"{index} {{}}" for index in range(captions)),
    )
    task = ConceptTask(concept, backbone, JobConfig.from_dict({"data": {"flip_probability": flips}}))
    task.step = step
    draws = task.draw()
    variants = 2 if flips else 1
    assert len(task.tensors["latent_means"]) == images * crops * variants
    assert set(draws.latents.tolist()) <= set(range(len(task.tensors["latent_means"])))
    assert draws.levels.dtype == torch.float64
    assert ((draws.levels >= 0) & (draws.levels < 1)).all()
    assert set(backbone.levels(draws.levels).tolist()) <= set(range(1000))
    if flips == 1:
        assert (draws.latents % 2 == 1).all()
    image = draws.latents // (crops * variants)
    captioned = image < captions
    assert torch.equal(draws.prompts[captioned], 3 + image[captioned])
    assert (draws.prompts[~captioned] < 3).all()
    assert draws.noise.shape == (2, 64, *tiny.LATENT_SHAPE)


def test_draws_reach_everything_about_equally(backbone: StableDiffusion) -> None:
    task = ConceptTask(tiny.concept(batch_size=6000), backbone, CONFIG)
    draws = task.draw()
    assert torch.bincount(draws.latents, minlength=6).min() > 900
    assert torch.bincount(draws.prompts, minlength=3).min() > 1850
    assert torch.bincount(backbone.levels(draws.levels) // 100, minlength=10).min() > 500


def test_cached_latents_are_of_every_crop_and_flip(backbone: StableDiffusion) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    task = ConceptTask(tiny.concept(images=images), backbone, CONFIG)
    for image in range(2):
        for crop in range(3):
            for flip in range(2):
                pixels = images[image, crop][None, :, :: -1 if flip else 1].copy()
                mean, std = backbone.latent_moments(pixels)
                index = (image * 3 + crop) * 2 + flip
                torch.testing.assert_close(task.tensors["latent_means"][index], mean[0])
                torch.testing.assert_close(task.tensors["latent_stds"][index], std[0])


def test_captions_may_name_the_word_themselves(backbone: StableDiffusion) -> None:
    task = ConceptTask(tiny.concept(captions=("<c0> on the beach", "a {}")), backbone, CONFIG)
    assert (task.tensors["prompt_ids"] == -1).sum(1).tolist() == [1] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": ("a photo of a cat",)}, "doesn't contain the word '<c0>'"),
        ({"templates": ("a " * 40 + "{}",)}, "would be cut off"),
        ({"initializer_token": " "}, "gives no token"),
        ({"placeholder_token": "cat"}, "vocabulary already"),
    ],
)
def test_concepts_that_cannot_be_learned(
    backbone: StableDiffusion, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptTask(tiny.concept(**changes), backbone, CONFIG)


def test_resumed_equals_uninterrupted(backbone: StableDiffusion) -> None:
    concept = tiny.concept(steps=5, num_vectors=2)
    whole = run(ConceptTask(concept, backbone, CONFIG), backbone, 5)
    saved = run(ConceptTask(concept, backbone, CONFIG), backbone, 2).to_bytes()
    resumed = ConceptTask(concept, backbone, CONFIG)
    resumed.restore(saved)
    assert resumed.step == 2
    run(resumed, backbone, 3)
    assert resumed.to_bytes() == whole.to_bytes()


def test_a_finished_concept_goes_on_when_steps_are_raised(backbone: StableDiffusion) -> None:
    finished = run(ConceptTask(tiny.concept(steps=2), backbone, CONFIG), backbone, 2)
    longer = ConceptTask(tiny.concept(steps=5), backbone, CONFIG)
    longer.restore(finished.to_bytes())
    assert (longer.step, longer.done) == (2, False)
    run(longer, backbone, 3)
    whole = run(ConceptTask(tiny.concept(steps=5), backbone, CONFIG), backbone, 5)
    assert longer.to_bytes() == whole.to_bytes()
    assert len(longer.loss_history) == 5


def test_a_state_is_of_kilobytes(backbone: StableDiffusion) -> None:
    assert len(run(ConceptTask(tiny.concept(), backbone, CONFIG), backbone, 4).to_bytes()) < 4096


def with_state(task: ConceptTask, **changes: torch.Tensor) -> bytes:
    """The task's file with other values in its state."""
    state = {**task.state_dict(), **changes}
    task.state_dict = lambda: state  # type: ignore[method-assign]
    return task.to_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda task: b"", "not a state file"),
        (lambda task: task.to_bytes()[:-7], "not a state file"),
        (lambda task: b"\xff" * 500, "not a state file"),
        (lambda task: with_state(task, vectors=torch.full((1, 32), torch.nan)), "not finite"),
        (
            lambda task: with_state(task, exp_avg=torch.zeros(2, 32)),
            r"exp_avg .* not torch.float32 \(1, 32\)",
        ),
        (lambda task: with_state(task, exp_avg=torch.zeros(1, 32).double()), "exp_avg .* torch.float64"),
        (lambda task: with_state(task, step=torch.tensor([5])), "at step 5 of 4 with 3 losses"),
        (lambda task: with_state(task, step=torch.tensor([2])), "at step 2 of 4 with 3 losses"),
        (lambda task: with_state(task, surprise=torch.zeros(1)), "wrong parts"),
    ],
)
def test_corrupt_states_are_refused(
    backbone: StableDiffusion, spoil: Callable[[ConceptTask], bytes], message: str
) -> None:
    data = spoil(run(ConceptTask(tiny.concept(), backbone, CONFIG), backbone, 3))
    task = ConceptTask(tiny.concept(), backbone, CONFIG)
    before = task.to_bytes()
    with pytest.raises(ValueError, match=message):
        task.restore(data)
    assert task.to_bytes() == before


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_never_do_worse_than_a_value_error(
    backbone: StableDiffusion, data: st.DataObject
) -> None:
    """A rejected file leaves the task unchanged, also when the task is at another step than the file."""
    source, task = (ConceptTask(tiny.concept(), backbone, CONFIG) for _ in range(2))
    source.step = 2
    content, before = bytearray(source.to_bytes()), task.to_bytes()
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        task.restore(bytes(content))
    except ValueError:
        assert task.to_bytes() == before


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"concept_id": "another"}, "concept_id"), ({"state_fingerprint": "another"}, "state_fingerprint")],
)
def test_foreign_states_are_refused(backbone: StableDiffusion, changes: dict[str, Any], part: str) -> None:
    data = ConceptTask(tiny.concept(**changes), backbone, CONFIG).to_bytes()
    with pytest.raises(ValueError, match=f"{part} is 'another'"):
        ConceptTask(tiny.concept(), backbone, CONFIG).restore(data)


def test_a_state_from_full_precision_gets_a_loss_scale_in_half(backbone: StableDiffusion) -> None:
    data = ConceptTask(tiny.concept(), backbone, CONFIG).to_bytes()
    task = ConceptTask(tiny.concept(), backbone, CONFIG)
    task.tensors["loss_scale"].fill_(2.0**16)
    task.restore(data)
    assert task.tensors["loss_scale"].item() == 2.0**16


def test_a_loss_scale_of_one_is_kept_where_it_was_found_in_half(backbone: StableDiffusion) -> None:
    """Overflows have halved it so often; the next steps are those of a run without an interruption."""
    saved, task = (ConceptTask(tiny.concept(), backbone, CONFIG) for _ in range(2))
    for one in (saved, task):
        one._scales_loss = True
        one.tensors["loss_scale"].fill_(2.0**16)
    saved.tensors["loss_scale"].fill_(1.0)
    task.restore(saved.to_bytes())
    assert task.tensors["loss_scale"].item() == 1


def test_what_a_start_was_chosen_is_part_of_the_state(backbone: StableDiffusion) -> None:
    """Another device may find another word best by a hair; the terms that keep near the start go by this one's."""
    concept = tiny.concept(init_from="auto", initializer_candidates=("cat", "dog"), initializer_token="")
    saved, task = (ConceptTask(concept, backbone, CONFIG) for _ in range(2))
    other = "dog" if saved.concept.initializer_token == "cat" else "cat"
    saved.concept = dataclasses.replace(saved.concept, initializer_token=other)
    saved.tensors["initial"].fill_(0.5)
    task.restore(saved.to_bytes())
    assert task.concept.initializer_token == other
    assert torch.equal(task.tensors["initial"], saved.tensors["initial"])
    assert task.to_bytes() == saved.to_bytes()


def test_a_state_of_an_earlier_version_has_the_start_that_is_found_now(backbone: StableDiffusion) -> None:
    task = ConceptTask(tiny.concept(), backbone, CONFIG)
    state, initial = task.state_dict(), task.tensors["initial"].clone()
    del state["initial"]
    task.load_state_dict(state)
    assert torch.equal(task.tensors["initial"], initial)


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 50),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_learning_rates(steps: int, warmup: int, schedule: Literal["constant", "linear", "cosine"]) -> None:
    training = TrainingConfig(lr_schedule=schedule, lr_warmup_steps=warmup)
    rates = [learning_rate(step, steps, 2.0, training) for step in range(steps)]
    others = TrainingConfig(lr_warmup_steps=warmup, lr_schedule="linear")
    assert rates == [learning_rate(step, steps, 2.0, others, schedule) for step in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == 2.0
    if schedule == "constant":
        assert set(falling) <= {2.0}
    elif len(falling) > 1:
        assert falling[-1] <= 2.001 / len(falling)


@pytest.mark.parametrize("count", [1, 2])
def test_vectors_that_join_later_leave_the_start_as_it_is(backbone: StableDiffusion, count: int) -> None:
    """The first ones are those of a word without later vectors; the others begin as the mean of the start."""
    start = {
        "clip_l": tuple(map(tuple, torch.randn(2, 32, generator=torch.Generator().manual_seed(0)).tolist()))
    }
    options: dict[str, Any] = {
        "init_from": "w.safetensors",
        "initializer_token": "",
        "initial_vectors": start,
        "num_vectors": count,
    }
    plain = ConceptTask(tiny.concept(**options), backbone, CONFIG).tensors["vectors"]
    later = ConceptTask(tiny.concept(**options, steps=9, vectors_added_at=(3, 5)), backbone, CONFIG)
    mean = torch.tensor(start["clip_l"]).mean(dim=0)
    torch.testing.assert_close(later.tensors["vectors"], torch.cat([plain, mean.expand(2, -1)]))
    assert torch.equal(later.tensors["vectors"], later.tensors["initial"])
