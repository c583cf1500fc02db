"""Learning to the end in this process, without any service, and comparing what was learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from pydantic import JsonValue

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask


def run(tasks: Sequence[ConceptTask], backbone: Backbone, size: int, config: JobConfig) -> None:
    """Takes the tasks to their ends in a pack of this size. Slots are refilled in the order given."""
    pack, waiting = Pack(backbone, config, size), list(tasks)
    while waiting or pack.tasks:
        while waiting and pack.free:
            pack.add(waiting.pop(0))
        pack.step()


def alone(concept: Concept, backbone: Backbone, config: JobConfig) -> ConceptTask:
    """A concept's task at its end, learned in a pack of its own."""
    task = ConceptTask(concept, backbone, config)
    run([task], backbone, 1, config)
    return task


def assert_same(task: ConceptTask, expected: ConceptTask, tolerance: float = 1e-9) -> None:
    """The same step and, up to `tolerance`, the same state."""
    assert task.step == expected.step
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(
            task.state_dict()[name], value, rtol=0, atol=tolerance, equal_nan=True, msg=name
        )


def digest(backbone: Backbone) -> str:
    """SHA-256 of every bit of the model, names included."""
    total = hashlib.sha256()
    for model in backbone.models:
        for name, value in sorted(model.state_dict().items()):
            total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def dvar(
    training: Mapping[str, JsonValue] | None = None, *, min_steps: int = 3, **changes: JsonValue
) -> JobConfig:
    """A configuration whose rule ends the learning of tiny concepts at different steps."""
    rule = {"every": 2, "batch_size": 3, "window": 3, "threshold": 0.08, **changes}
    section = {"rule": "dvar", "min_steps": min_steps, "dvar": rule}
    return JobConfig.from_dict({"stopping": section, "training": training or {}})
