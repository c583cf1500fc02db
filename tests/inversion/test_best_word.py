"""`stopping.rule: clip`: the caller supplies the scores, and the word is that of the best evaluation."""

from __future__ import annotations

import pytest
import torch

from tests.support import tiny
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask

SCORES = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.7, 10: 0.9}


def clip(patience: int, min_steps: int = 0) -> JobConfig:
    section = {"rule": "clip", "min_steps": min_steps, "clip": {"every": 2, "patience": patience}}
    return JobConfig.from_dict({"stopping": section})


def learned_by(
    scores: dict[int, float],
    task: ConceptTask,
    backbone: StableDiffusion,
    config: JobConfig,
    *,
    interrupted: bool,
) -> tuple[ConceptTask, dict[int, torch.Tensor]]:
    """Learns with these scores as evaluations. Returns the task at its end, and its word at each evaluation."""
    pack, seen = Pack(backbone, config, 1), {}
    if not task.done:
        pack.add(task)
    while not task.done or task.evaluation_due:
        if task.evaluation_due:
            seen[task.step] = task.vectors
            task.record(scores[task.step])
            task.apply_stopping()
            assert not task.evaluation_due
            if interrupted:
                task = restarted(task, pack, backbone, config)
        if not task.done:
            pack.step()
    return task, seen


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_concept_ends_when_its_scores_rise_no_more(backbone: StableDiffusion, interrupted: bool) -> None:
    config = clip(patience=2)
    task = ConceptTask(tiny.concept(steps=20), backbone, config)
    task, seen = learned_by(SCORES, task, backbone, config, interrupted=interrupted)
    assert (task.step, task.stopped, task.best_step) == (8, "clip", 4)
    assert list(seen) == [2, 4, 6, 8]
    assert torch.equal(task.vectors, seen[4]), "its best word"
    assert not torch.equal(seen[8], seen[4])


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize(("at_start", "best"), [(0.9, 0), (0.6, 4)])
def test_a_warm_start_may_be_kept_as_it_is(
    backbone: StableDiffusion, at_start: float, best: int, interrupted: bool
) -> None:
    """With a `min_steps` of its own the concept's start is evaluated as well, whatever the configuration's is."""
    config = clip(patience=2, min_steps=6)
    task = ConceptTask(tiny.concept(steps=20, min_steps=0), backbone, config)
    initial = task.vectors
    scores = {0: at_start, **SCORES}
    task, seen = learned_by(scores, task, backbone, config, interrupted=interrupted)
    assert torch.equal(seen[0], initial)
    assert (task.step, task.stopped, task.best_step) == ((4 if best == 0 else 8), "clip", best)
    assert torch.equal(task.vectors, seen[best])


def test_without_steps_there_is_nothing_to_choose(backbone: StableDiffusion) -> None:
    task = ConceptTask(tiny.concept(steps=0, min_steps=0), backbone, clip(patience=2))
    assert task.done
    assert not task.evaluation_due


@pytest.mark.parametrize(("steps", "best"), [(10, 10), (9, 4), (5, 4), (1, None)])
def test_the_last_word_is_evaluated_too(backbone: StableDiffusion, steps: int, best: int | None) -> None:
    config = clip(patience=9)
    task = ConceptTask(tiny.concept(steps=steps), backbone, config)
    task, seen = learned_by(SCORES, task, backbone, config, interrupted=False)
    assert (task.step, task.stopped, task.best_step) == (steps, None, best)
    assert list(seen) == [step for step in SCORES if step <= steps]
    last = task.tensors["vectors"]
    assert torch.equal(task.vectors, last if best is None else seen[best])


@pytest.mark.parametrize(("steps", "best"), [(20, 8), (6, 6), (4, None)])
def test_there_are_no_evaluations_before_learning_may_end(
    backbone: StableDiffusion, steps: int, best: int | None
) -> None:
    config = clip(patience=1, min_steps=5)
    task = ConceptTask(tiny.concept(steps=steps), backbone, config)
    task, seen = learned_by({6: 0.6, 8: 0.7, 10: 0.7}, task, backbone, config, interrupted=steps > 6)
    assert (task.step, task.best_step) == (min(steps, 10), best)
    assert list(seen) == [step for step in (6, 8, 10) if step <= steps]


@pytest.mark.parametrize("min_steps", [0, 6])
@pytest.mark.parametrize("first", [4, 5, 6])
def test_more_steps_go_on_from_the_last_word_not_the_best(
    backbone: StableDiffusion, first: int, min_steps: int
) -> None:
    config = clip(patience=9, min_steps=min_steps)
    at_once, _ = learned_by(
        SCORES, ConceptTask(tiny.concept(steps=11), backbone, config), backbone, config, interrupted=False
    )
    short, _ = learned_by(
        SCORES, ConceptTask(tiny.concept(steps=first), backbone, config), backbone, config, interrupted=False
    )
    more = ConceptTask(tiny.concept(steps=11), backbone, config)
    more.restore(short.to_bytes())
    more, _ = learned_by(SCORES, more, backbone, config, interrupted=False)
    assert more.to_bytes() == at_once.to_bytes()
    assert torch.equal(more.vectors, at_once.vectors)


def test_a_word_that_still_grows_is_not_the_best(backbone: StableDiffusion) -> None:
    config = clip(patience=9)
    concept = tiny.concept(steps=9, vectors_added_at=(5,))
    task = ConceptTask(concept, backbone, config)
    task, seen = learned_by(SCORES, task, backbone, config, interrupted=True)
    assert (task.best_step, task.vectors.shape) == (8, (2, 32))
    assert torch.equal(task.vectors, seen[8])


def restarted(task: ConceptTask, pack: Pack, backbone: StableDiffusion, config: JobConfig) -> ConceptTask:
    """The task restored from its file, which takes its place in the pack."""
    pack.remove(task)
    again = ConceptTask(task.concept, backbone, config)
    again.restore(task.to_bytes())
    assert (again.stopped, again.evaluation_due) == (task.stopped, False)
    if not again.done:
        pack.add(again)
    return again
