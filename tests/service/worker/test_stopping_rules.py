"""Stopping rules in a worker: what ends by them is stored as any other result, and depends on the concept alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import examples, tiny
from tests.support.bench import Bench, Crash, crashing, over
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store

pytestmark = pytest.mark.usefixtures("local_ray")

DVAR = (
    "stopping={rule: dvar, min_steps: 3, dvar: {every: 2, batch_size: 3, window: 3, threshold: 0.08}}",
    "pack.size=2",
)
CLIP = ("stopping={rule: clip, min_steps: 3, clip: {every: 3, patience: 1, num_images: 2}}",)


class Benches:
    """Benches whose stores lie side by side."""

    def __init__(self, backbone: Backbone, scorer: Scorer, sd: Path, clip: Path, folder: Path) -> None:
        self._models, self._paths, self._folder = (backbone, scorer), (sd, clip), folder

    def __call__(self, rule: tuple[str, ...], name: str = "store", **changes: Any) -> Bench:
        section, _, value = rule[0].partition("=")
        import yaml

        base = examples.config(
            *self._paths, "service.heartbeat_s=0.1", "service.checkpoint_every_s=0.05", *rule[1:]
        )
        data = {**base.to_dict(), section: yaml.safe_load(value)}
        for key, number in changes.items():
            data["stopping"][data["stopping"]["rule"]][key] = number
        return Bench(*self._models, JobConfig.from_dict(data), Store(str(self._folder / name)))


@pytest.fixture
def benches(backbone: Backbone, scorer: Scorer, tiny_sd: Path, tiny_clip: Path, tmp_path: Path) -> Benches:
    return Benches(backbone, scorer, tiny_sd, tiny_clip, tmp_path)


def results(bench: Bench) -> list[Result]:
    return list(bench.store.results())


@pytest.mark.slow
def test_concepts_that_end_by_dvar(benches: Benches) -> None:
    bench = benches(DVAR)
    concepts = [tiny.concept(index, steps=40, batch_size=1) for index in range(4)]
    concepts.append(tiny.concept(4, steps=3))
    status = bench.learn(concepts)
    found = results(bench)
    assert (status.done, status.failed) == (5, 0)
    assert [result.stopped for result in found] == [*["dvar"] * 4, "steps"]
    assert len({result.steps for result in found}) > 2
    assert status.steps_computed == sum(result.steps for result in found)
    for concept, result in zip(concepts, found, strict=True):
        np.testing.assert_allclose(bench.vectors(concept.concept_id), bench.alone(concept), atol=1e-6)
        history = bench.history(concept.concept_id)
        assert [point.step for point in history.points] == list(range(result.steps + 1))
        assert result.sample_steps[-1] == result.steps, "its last word was reviewed"
        assert history.points[-1].clip_image_similarity == result.clip_image_similarity
        assert result.stopping_seconds == 0, "the loss is evaluated as part of a step"


@pytest.mark.slow
@pytest.mark.parametrize("rule", [DVAR, CLIP])
def test_a_lost_worker_changes_no_end(benches: Benches, rule: tuple[str, ...]) -> None:
    concepts = [tiny.concept(index, steps=40) for index in range(3)]
    whole, broken = benches(rule, "whole"), benches(rule, "broken")
    whole.learn(concepts)
    scheduler = broken.scheduler(concepts)
    with pytest.raises(Crash):
        broken.worker(scheduler, crashing(broken, 5), "service.checkpoint_every_s=0.001").run()
    assert broken.store.read_concept("concept-0", "checkpoint.safetensors") is not None
    broken.worker(scheduler).run()
    assert over(scheduler).done == 3
    ends = [[(result.steps, result.stopped) for result in results(bench)] for bench in (whole, broken)]
    assert ends[0] == ends[1]
    assert broken.config.stopping.rule in {stopped for _, stopped in ends[0]}
    for result in results(whole):
        name = result.concept_id
        np.testing.assert_allclose(broken.vectors(name), whole.vectors(name), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_concepts_that_end_by_clip_similarity(benches: Benches, size: int) -> None:
    bench = benches((*CLIP, f"pack.size={size}"))
    concepts = [tiny.concept(index, steps=21 if index else 3) for index in range(5)]
    status = bench.learn(concepts)
    found = results(bench)
    assert "clip" in {result.stopped for result in found}
    assert len({result.steps for result in found}) > 1
    assert status.steps_computed == sum(result.steps for result in found)
    best = []
    for concept, result in zip(concepts, found, strict=True):
        alone = bench.learned_alone(concept)
        best.append(alone.best_step)
        assert result.best_step == alone.best_step
        assert (result.steps, result.stopped) == (alone.step, alone.stopped or "steps")
        assert 0 < result.stopping_seconds < result.seconds - result.review_seconds
        np.testing.assert_allclose(bench.vectors(concept.concept_id), alone.vectors, atol=1e-6)
    assert best[0] == 3, "its last word was looked at"
    assert any(step is not None and step < result.steps for step, result in zip(best, found, strict=True))


def test_more_steps_learn_no_more_after_the_end(benches: Benches) -> None:
    bench = benches(DVAR)
    bench.learn([tiny.concept(0, steps=40, batch_size=1)])
    (before,) = results(bench)
    more = tiny.concept(0, steps=80, batch_size=1, fingerprint="of more steps")
    assert bench.learn([more]).steps_computed == 0
    (after,) = results(bench)
    assert (after.steps, after.stopped) == (before.steps, "dvar")
    assert after.fingerprint == "of more steps"


def test_another_threshold_goes_on_or_begins_anew(benches: Benches) -> None:
    concept = tiny.concept(0, steps=40, batch_size=1)
    benches(DVAR).learn([concept])
    (early,) = results(benches(DVAR))
    stricter = benches(DVAR, threshold=0.02)
    computed = stricter.learn(
        [tiny.concept(0, steps=40, batch_size=1, fingerprint="stricter")]
    ).steps_computed
    (late,) = results(stricter)
    assert computed == late.steps - early.steps > 0
    again = benches(DVAR)
    computed = again.learn([tiny.concept(0, steps=40, batch_size=1, fingerprint="again")]).steps_computed
    (found,) = results(again)
    assert computed == found.steps == early.steps
    np.testing.assert_allclose(again.vectors("concept-0"), again.alone(concept), atol=1e-6)
