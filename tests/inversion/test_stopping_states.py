"""States that a stopping rule has ended, restored under other settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import tiny
from tests.support.learning import alone, dvar, run
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask

CONFIG, NEVER = dvar(), JobConfig()
LONG = tiny.concept(0, steps=40, batch_size=1)


@pytest.fixture(scope="module")
def ended(backbone: StableDiffusion) -> ConceptTask:
    """LONG, ended by CONFIG."""
    task = alone(LONG, backbone, CONFIG)
    assert task.stopped
    return task


def restored(data: bytes, backbone: StableDiffusion, config: JobConfig, **changes: Any) -> ConceptTask:
    task = ConceptTask(tiny.concept(0, **{"steps": 40, "batch_size": 1, **changes}), backbone, config)
    task.restore(data)
    return task


def test_more_steps_learn_no_more_after_the_end(backbone: StableDiffusion, ended: ConceptTask) -> None:
    again = restored(ended.to_bytes(), backbone, CONFIG, steps=400)
    assert (again.step, again.stopped, again.done) == (ended.step, "dvar", True)


def test_without_a_rule_learning_goes_on(backbone: StableDiffusion, ended: ConceptTask) -> None:
    task = restored(ended.to_bytes(), backbone, NEVER)
    assert (task.step, task.done) == (ended.step, False)
    run([task], backbone, 1, NEVER)
    assert task.to_bytes() == alone(LONG, backbone, NEVER).to_bytes()


def test_a_later_end_is_reached_from_the_state(backbone: StableDiffusion, ended: ConceptTask) -> None:
    config = dvar(threshold=0.02)
    task = restored(ended.to_bytes(), backbone, config)
    assert (task.step, task.done) == (ended.step, False)
    run([task], backbone, 1, config)
    assert task.to_bytes() == alone(LONG, backbone, config).to_bytes()


def test_a_state_beyond_the_end_is_refused(backbone: StableDiffusion) -> None:
    beyond = alone(LONG, backbone, dvar(threshold=0.02))
    task = ConceptTask(LONG, backbone, CONFIG)
    before = task.to_bytes()
    with pytest.raises(ValueError, match=f"at step {beyond.step}, where learning ends at step"):
        task.restore(beyond.to_bytes())
    assert task.to_bytes() == before
    assert not task.done


@pytest.mark.parametrize(
    "change",
    [
        lambda: NEVER,
        lambda: dvar(every=1),
        lambda: dvar(batch_size=2),
        lambda: JobConfig.from_dict({"stopping": {"rule": "clip", "clip": {"every": 2}}}),
    ],
)
def test_a_series_of_other_evaluations_is_not_continued(
    backbone: StableDiffusion, change: Callable[[], JobConfig]
) -> None:
    config = change()
    pack, task = Pack(backbone, config, 1), ConceptTask(LONG, backbone, config)
    pack.add(task)
    for _ in range(4):
        pack.step()
    with pytest.raises(ValueError, match="evaluation_digest is"):
        restored(task.to_bytes(), backbone, CONFIG)


def test_a_state_with_an_evaluation_too_few_is_refused(backbone: StableDiffusion) -> None:
    task, pack = ConceptTask(LONG, backbone, CONFIG), Pack(backbone, CONFIG, 1)
    pack.add(task)
    for _ in range(3):
        pack.step()
    state = task.state_dict()
    with pytest.raises(ValueError, match="at step 3 with 1 evaluations"):
        ConceptTask(LONG, backbone, CONFIG).load_state_dict(
            {**state, "evaluations": state["evaluations"][:1]}
        )
