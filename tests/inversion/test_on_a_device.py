"""Where the packed step waits for its device, tested without one.

Torch's device "meta" computes shapes without values. So an operation that mixes host and device fails there, and
so does one that has to wait for a value.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tests.support import tiny
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import FAILURE_CHECK_INTERVAL, Pack
from textinv_ray.inversion.task import ConceptTask

CONFIG = JobConfig.from_dict({"training": {"max_grad_norm": 0.05, "lr_schedule": "cosine"}})
CONCEPTS = [
    tiny.concept(0, steps=50, batch_size=3, num_vectors=2, regularization_weight=0.1),
    tiny.concept(1, steps=50, norm_control="rescale", captions=("a {}", "one {}", "{} here")),
    tiny.concept(2, steps=50, per_image_probability=0.5, vectors_added_at=(4,)),
]


@pytest.fixture
def pack(tiny_sd: Path) -> Pack:
    """Three concepts on a device without values, in half precision."""
    real = load_backbone(str(tiny_sd), device="cpu", dtype="float16")
    tasks = [ConceptTask(concept, real, CONFIG) for concept in CONCEPTS]
    backbone = copy.copy(real)  # with the vocabulary's mean and norm, which it has computed
    made = Pack(backbone.to("meta"), CONFIG, len(tasks))
    for task in tasks:
        task.tensors = {name: tensor.to("meta") for name, tensor in task.tensors.items()}
        made.add(task)
    return made


def test_a_step_waits_for_the_device_only_where_concepts_may_leave(pack: Pack) -> None:
    for _ in range(FAILURE_CHECK_INTERVAL - 1):
        assert pack.step() == []
    with pytest.raises(NotImplementedError, match="meta tensor"):
        pack.step()
