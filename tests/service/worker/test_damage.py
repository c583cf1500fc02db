"""A worker on damaged files of earlier runs, and on words that ran away: it goes on, and so do the others."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import tiny
from tests.support.bench import Bench, over
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.review import Review
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.store.history import Point
from textinv_ray.service.worker import artifacts

pytestmark = pytest.mark.usefixtures("local_ray")
WORD = "learned_embeds.safetensors"


class RunsAway(Pack):
    """Its concept-1 ends with infinite vectors."""

    def step(self) -> list[ConceptTask]:
        left = super().step()
        for task in left:
            if task.concept.concept_id == "concept-1":
                task.tensors["vectors"].fill_(torch.inf)
        return left


def test_a_word_is_made_again_from_its_state(bench: Bench) -> None:
    bench.learn([tiny.concept(0)])
    word = bench.vectors("concept-0")
    (found,) = bench.store.results()
    bench.store.remove(f"concepts/concept-0/{WORD}")
    bench.store.remove("concepts/concept-0/samples/step_0000000.png")
    assert bench.store.damaged([found]) == ["concept-0"]
    bench.store.reopen("concept-0")
    status = bench.learn([tiny.concept(0)])
    assert (status.done, status.failed, status.steps_computed) == (1, 0, 0)
    np.testing.assert_array_equal(bench.vectors("concept-0"), word)
    again = bench.store.result("concept-0")
    assert again is not None
    assert again.word_sha256 == found.word_sha256
    assert bench.store.read_concept("concept-0", "samples/step_0000000.png"), "what is gone is drawn again"
    assert bench.store.damaged([again]) == []


@pytest.mark.parametrize("files", [("history.parquet",), ("state.safetensors", "history.parquet")])
def test_damaged_files_are_begun_anew(bench: Bench, files: tuple[str, ...]) -> None:
    bench.learn([tiny.concept(0)])
    for name in files:
        data = bytearray(bench.store.read_concept("concept-0", name) or b"")
        data[4 : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - 4)
        bench.store.write_concept("concept-0", name, bytes(data))
    bench.store.reopen("concept-0")
    status = bench.learn([tiny.concept(0)])
    steps = tiny.concept(0).steps
    assert (status.done, status.failed) == (1, 0)
    assert status.steps_computed == (steps if "state.safetensors" in files else 0)
    np.testing.assert_allclose(bench.vectors("concept-0"), bench.alone(tiny.concept(0)), atol=1e-6)
    assert [point.step for point in bench.history("concept-0").points][:: steps if len(files) == 1 else 1]


def test_infinite_words_fail_alone(bench: Bench) -> None:
    scheduler = bench.scheduler([tiny.concept(index) for index in range(3)])
    bench.worker(scheduler, RunsAway).run()
    status = over(scheduler)
    assert (status.done, status.failed) == (2, 1)
    failure = bench.store.failure("concept-1")
    assert failure is not None
    assert "the word has values that are not finite" in failure.error
    assert not failure.quarantined


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_null(score: float) -> None:
    point = Point(0, 0, 0.0)
    artifacts.review(point, Review({}, score, 0.5, score))
    assert (point.clip_image_similarity, point.clip_text_similarity) == (None, 0.5)
    assert point.judge_similarity is None


def test_a_vae_that_overflows_fails_its_concept_alone(bench: Bench, tiny_sd: Path) -> None:
    """In float16 its first layer gives infinity for white pictures, and none for grey ones."""
    bench.backbone = load_backbone(str(tiny_sd), device="cpu", dtype="float32")
    bench.backbone.vae.to(torch.float16).encoder.conv_in.weight.data.fill_(5e4)
    shape = (3, 1, tiny.RESOLUTION, tiny.RESOLUTION, 3)
    white, grey = (
        tiny.concept(index, images=np.full(shape, value, np.uint8)) for index, value in enumerate((255, 127))
    )
    status = bench.learn([white, grey])
    assert (status.done, status.failed) == (1, 1)
    failure = bench.store.failure(white.concept_id)
    assert failure is not None
    assert failure.error == "the VAE overflows in float16: set model.vae_dtype to bfloat16 or float32"
