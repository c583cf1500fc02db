"""`stopping.rule: dvar`: where learning ends depends on the concept alone, not on the pack or on interruptions."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.learning import alone, assert_same, digest, dvar, run
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import choose_pack_size

CONFIG = dvar()
CONCEPTS = [
    tiny.concept(0, steps=40, batch_size=1),
    tiny.concept(1, steps=30, batch_size=3, num_vectors=2, initializer_token="red house"),
    tiny.concept(2, steps=5, captions=("a {}", "one {} here")),
    tiny.concept(3, steps=25, learning_rate=0.05, templates=("a {}", "my {}", "{}", "the {} cat")),
    tiny.concept(4, steps=35, vectors_added_at=(11,), per_image_probability=0.5),
    tiny.concept(5, steps=1),
]


def assert_same_end(task: ConceptTask, expected: ConceptTask) -> None:
    assert (task.stopped, task.done) == (expected.stopped, True)
    assert_same(task, expected)


@pytest.fixture(scope="module")
def learned_alone(backbone64: StableDiffusion) -> list[ConceptTask]:
    found = [alone(concept, backbone64, CONFIG) for concept in CONCEPTS]
    assert len({task.step for task in found if task.stopped}) >= 3, (
        "these concepts were to stop, at different steps"
    )
    assert {task.stopped for task in found} == {None, "dvar"}
    return found


# --- The fixed batch ---------------------------------------------------------------------------------------


def test_the_fixed_batch_depends_on_the_seed_alone(backbone: StableDiffusion) -> None:
    one = ConceptTask(tiny.concept(0, seed=5), backbone, CONFIG)
    torch.manual_seed(99)
    same = tiny.concept(0, concept_id="x", seed=5, steps=99, batch_size=1, learning_rate=1.0)
    other = ConceptTask(tiny.concept(0, seed=6), backbone, CONFIG)
    names = [name for name in one.tensors if name.startswith("fixed_")]
    assert len(names) == 6
    for name in names:
        assert torch.equal(one.tensors[name], ConceptTask(same, backbone, CONFIG).tensors[name])
    assert not torch.equal(one.tensors["fixed_noise"], other.tensors["fixed_noise"])
    assert not torch.equal(one.tensors["fixed_noise"][0], one.draw().noise[1, 0]), "it is no step's"


def test_the_fixed_timesteps_cover_the_schedule(backbone: StableDiffusion) -> None:
    tensors = ConceptTask(tiny.concept(), backbone, dvar(batch_size=10)).tensors
    assert (tensors["fixed_levels"] // 100).tolist() == list(range(10))


def test_the_fixed_batch_is_pinned(backbone: StableDiffusion) -> None:
    """Pinned, because another batch would make resumed concepts differ from uninterrupted ones."""
    task = ConceptTask(tiny.concept(seed=7), backbone, CONFIG)
    assert task.tensors["fixed_levels"].tolist() == [233, 550, 734]
    assert task.tensors["fixed_noise"][0, 0, 0, :2].tolist() == pytest.approx([0.387425, -0.178173], abs=1e-5)


def test_an_evaluation_is_the_loss_on_the_fixed_batch(
    backbone64: StableDiffusion, learned_alone: list[ConceptTask]
) -> None:
    """The loss of the word before the step, with the vectors that have joined by then."""
    concept = CONCEPTS[4]
    task = ConceptTask(concept, backbone64, CONFIG)
    pack = Pack(backbone64, CONFIG, 1)
    pack.add(task)
    fixed = ConceptTask(concept, backbone64, CONFIG).tensors
    expected = []
    while not task.done:
        if task.step % 2 == 0:
            lines = fixed["fixed_ids"][3 * task.stage :][:3]
            condition = backbone64.encode(lines, task.tensors["vectors"])
            loss = backbone64.denoising_loss(
                fixed["fixed_latents"], fixed["fixed_noise"], fixed["fixed_levels"], condition
            )
            expected.append(loss.mean().item())
        pack.step()
    assert task.step > 12
    assert learned_alone[4].state_dict()["evaluations"].tolist() == pytest.approx(expected, abs=1e-9)
    of_stage = [(fixed["fixed_ids"][stage : stage + 3] < 0).sum() for stage in (0, 3)]
    assert of_stage[1] - of_stage[0] == 3, "a vector more in each of the three prompts"


# --- Concepts ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(len(CONCEPTS))), size=st.integers(1, 5))
def test_packed_equals_alone(
    backbone64: StableDiffusion, learned_alone: list[ConceptTask], order: list[int], size: int
) -> None:
    tasks = [ConceptTask(CONCEPTS[index], backbone64, CONFIG) for index in order]
    run(tasks, backbone64, size, CONFIG)
    for index, task in zip(order, tasks, strict=True):
        assert_same_end(task, learned_alone[index])


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=1, max_size=10))
def test_interrupted_equals_uninterrupted(
    backbone64: StableDiffusion, learned_alone: list[ConceptTask], moves: list[tuple[int, int]]
) -> None:
    """Concepts are resumed from their files after any number of steps, in changing packs."""
    chosen = (0, 1, 4)
    tasks = [ConceptTask(CONCEPTS[index], backbone64, CONFIG) for index in chosen]
    pack = Pack(backbone64, CONFIG, 2)
    for place, steps in moves:
        if tasks[place] in pack.tasks:
            pack.remove(tasks[place])
            data = tasks[place].to_bytes()
            tasks[place] = ConceptTask(CONCEPTS[chosen[place]], backbone64, CONFIG)
            tasks[place].restore(data)
        elif pack.free and not tasks[place].done:
            pack.add(tasks[place])
        for _ in range(steps * bool(pack.tasks)):
            if pack.tasks:
                pack.step()
    for task in list(pack.tasks):
        pack.remove(task)
    run([task for task in tasks if not task.done], backbone64, 2, CONFIG)
    for index, task in zip(chosen, tasks, strict=True):
        assert_same_end(task, learned_alone[index])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_end_changes_no_step_before_it(backbone: StableDiffusion, schedule: str) -> None:
    """Also with a learning rate that decays to 0 at the last of all steps."""
    concept, training = tiny.concept(0, steps=40, batch_size=1), {"lr_schedule": schedule}
    task = alone(concept, backbone, dvar(training))
    assert task.stopped
    config = JobConfig.from_dict({"training": training})
    plain, pack = ConceptTask(concept, backbone, config), Pack(backbone, config, 1)
    pack.add(plain)
    for _ in range(task.step):
        pack.step()
    assert torch.equal(plain.vectors, task.vectors)
    assert torch.equal(plain.loss_history, task.loss_history)


def test_slots_are_free_before_the_next_step(backbone: StableDiffusion) -> None:
    """When some concepts end, the others take no step, so concepts that fill the slots step together with them."""
    tasks = [ConceptTask(tiny.concept(index, steps=60), backbone, CONFIG) for index in range(3)]
    pack = Pack(backbone, CONFIG, 3)
    for task in tasks:
        pack.add(task)
    leavers: list[ConceptTask] = []
    while not leavers:
        before = [task.step for task in tasks]
        leavers = pack.step()
    assert [task.step for task in tasks] == before
    assert all(task.stopped == "dvar" and task not in pack.tasks for task in leavers)
    assert pack.free == len(leavers)
    with pytest.raises(ValueError, match="nothing left to do"):
        pack.add(leavers[0])


def test_the_model_stays_as_it_was(backbone: StableDiffusion) -> None:
    before = digest(backbone)
    run([ConceptTask(concept, backbone, CONFIG) for concept in CONCEPTS], backbone, 3, CONFIG)
    assert digest(backbone) == before


def full(*_: object) -> NoReturn:
    """Evaluations are due first, so they are what runs out of memory."""
    assert not torch.is_grad_enabled()
    raise torch.OutOfMemoryError


def test_running_out_of_memory_at_an_evaluation_changes_nothing(
    backbone64: StableDiffusion, learned_alone: list[ConceptTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(backbone64, CONFIG, 2)
    tasks = [ConceptTask(concept, backbone64, CONFIG) for concept in CONCEPTS[:2]]
    for task in tasks:
        pack.add(task)
    pack.step()
    pack.step()
    before = [task.to_bytes() for task in tasks]
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "denoising_loss", full)
        with pytest.raises(torch.OutOfMemoryError):
            pack.step()
    assert [task.to_bytes() for task in tasks] == before
    pack.remove(tasks[1])
    while pack.tasks:
        pack.step()
    assert_same_end(tasks[0], learned_alone[0])


def test_no_more_samples_at_an_evaluation_than_in_a_step(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, real = [], Backbone.predict

    def predict(
        self: Backbone, noisy: torch.Tensor, levels: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        sizes.append(len(noisy))
        return real(self, noisy, levels, condition)

    monkeypatch.setattr(Backbone, "predict", predict)
    pack = Pack(backbone, CONFIG, 2)
    for concept in CONCEPTS[:2]:  # 1 + 3 samples a step, 2 x 3 an evaluation
        pack.add(ConceptTask(concept, backbone, CONFIG))
    pack.step()
    assert sizes == [4, 2, 4]


def test_a_concept_that_fails_is_not_taken_for_learned(backbone: StableDiffusion) -> None:
    """Its word doesn't change from the failed step on, and its failure is noticed some steps later."""
    config = dvar({"max_nonfinite_steps": 1}, min_steps=2, every=1)
    bad, pack = ConceptTask(tiny.concept(7, steps=60), backbone, config), Pack(backbone, config, 1)
    pack.add(bad)
    for _ in range(4):
        pack.step()
    bad.tensors["latent_means"].fill_(math.inf)
    while pack.tasks:
        pack.step()
    assert bad.failed
    assert (bad.step, bad.stopped) == (5, None)
    assert bad.tensors["evaluations"].isfinite().sum() == 10, "it was evaluated until the failure was noticed"


def test_the_trial_of_pack_sizes_takes_no_evaluations(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Backbone.denoising_loss

    def with_gradient_only(self: Backbone, *arguments: Any) -> torch.Tensor:
        assert torch.is_grad_enabled(), "an evaluation, which needs no gradient"
        return real(self, *arguments)

    monkeypatch.setattr(Backbone, "denoising_loss", with_gradient_only)
    config = dvar(every=1).model_copy(update={"pack": JobConfig.from_dict({"pack": {"max_size": 2}}).pack})
    task = ConceptTask(tiny.concept(steps=2), backbone, config)
    assert choose_pack_size(backbone, task, config) in (1, 2)
