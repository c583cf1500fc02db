"""A worker on a real scheduler: what it learns depends on the concept alone, and nothing is lost or done twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import tiny
from tests.support.bench import Bench, Crash, crashing, over
from tests.support.catalogue import examples
from tests.support.learning import random_masks
from tests.support.waiting import wait_for
from textinv_ray.concepts import image_features, predictor
from textinv_ray.inversion import words
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.review import Review, Subject
from textinv_ray.inversion.scoring import crop_features
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.store import features
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("local_ray")


class HeldStore(Store):
    """A store in which one kind of write waits until it is let through, as while the store is away."""

    def __init__(self, uri: str, method: str) -> None:
        super().__init__(uri)
        self._method = method
        self.reached, self.let_through = threading.Event(), threading.Event()
        self.began_twice = threading.Event()
        """training.png was written for the second time: the writes queued before that are done."""
        self._begun = 0

    def finish(self, *arguments: Any) -> None:
        self._hold("finish")
        super().finish(*arguments)

    def checkpoint(self, *arguments: Any) -> None:
        self._hold("checkpoint")
        super().checkpoint(*arguments)

    def write_concept(self, concept_id: str, name: str, data: bytes) -> None:
        if (concept_id, name) == ("concept-0", "training.png"):
            self._begun += 1
            if self._begun == 2:
                self.began_twice.set()
        super().write_concept(concept_id, name, data)

    def _hold(self, method: str) -> None:
        if method == self._method:
            self.reached.set()
            assert self.let_through.wait(60)


def test_everything_that_is_kept(bench: Bench) -> None:
    """Of concepts of two shapes, which no pack mixes, some with masks."""
    concepts = [tiny.concept(index, steps=3 + index) for index in range(4)]
    concepts.append(tiny.concept(4, steps=7, heldout=tiny.concept(9).images[:2]))
    wide = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 32, 3), dtype=np.uint8)
    concepts.insert(1, tiny.concept(5, steps=2, images=wide))
    concepts.insert(
        3, tiny.concept(6, steps=4, images=wide, masks=np.concatenate([random_masks(0)] * 2, axis=3))
    )
    concepts.append(tiny.concept(7, steps=3, masks=random_masks(1)))
    status = bench.learn(concepts)
    assert (status.done, status.failed, status.steps_computed) == (8, 0, sum(c.steps for c in concepts))
    for concept in concepts:
        result = bench.store.result(concept.concept_id)
        assert result is not None
        assert result.steps == concept.steps
        assert result.fingerprint == concept.fingerprint
        assert result.images_mtime_digest == "stamp"
        assert result.sample_steps == tuple(sorted({0, round(0.5 * concept.steps), concept.steps}))
        assert result.clip_image_similarity is not None
        assert -1 <= result.clip_image_similarity <= 1
        assert result.clip_text_similarity_initializer is not None
        assert -1 <= result.clip_text_similarity_initializer <= 1
        assert 0 < result.review_seconds < result.seconds
        np.testing.assert_allclose(bench.vectors(concept.concept_id), bench.alone(concept), atol=1e-6)
        start = words.initial_vectors(bench.backbone, concept.initializer_token, concept.num_vectors)
        initial = bench.store.read_concept(concept.concept_id, "initial_embeds.safetensors") or b""
        torch.testing.assert_close(words.load_learned_embeds(bench.backbone, initial)[1], start.float().cpu())
        history = bench.history(concept.concept_id)
        assert [point.step for point in history.points] == list(range(concept.steps + 1))
        assert all(point.loss is not None for point in history.points[1:])
        assert bench.store.read_concept(concept.concept_id, "checkpoint.safetensors") is None
        assert bench.store.read_concept(concept.concept_id, "training.png") is not None
        assert len(bench.store.names(f"concepts/{concept.concept_id}/samples")) == len(result.sample_steps)
        data = bench.store.read_concept(concept.concept_id, features.FILE)
        assert data is not None
        (found,) = features.from_bytes(data).values()
        assert found.pictures.shape == (bench.config.scoring.num_images, 16)
        held = bench.store.read_concept(concept.concept_id, "heldout.png")
        assert (held is not None, result.heldout_images) == (
            (True, 2) if concept.heldout is not None else (False, 0)
        )


def test_a_predicted_word_without_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reviewed and scored as it is; what it was predicted from is kept, for the next predictor."""
    fitted = predictor.fit(examples(12, dim=16))
    data = np.frombuffer(fitted.to_bytes(), np.uint8)
    start: dict[str, Any] = {"init_from": "p.safetensors", "initializer_token": "", "predictor": data}
    concept = tiny.concept(0, steps=0, model_identity="model-1", **start)
    other = tiny.concept(1, steps=0, heldout=tiny.concept(9).images)
    rendered: list[Subject] = []

    def review(engine: Engine, subjects: Sequence[Subject], *, scored: bool) -> list[Review]:
        rendered.extend(subjects)
        return plain(engine, subjects, scored=scored)

    plain = Engine.review
    monkeypatch.setattr(Engine, "review", review)
    status = bench.learn([concept, other, tiny.concept(2, steps=3, **start)])
    times = Counter(subject.concept.concept_id for subject in rendered)
    assert times == {"concept-0": 1, "concept-1": 2, "concept-2": 3}, "the same word isn't drawn twice"
    assert (status.done, status.failed, status.steps_computed) == (3, 0, 3)
    result = bench.store.result("concept-0")
    assert result is not None
    assert (result.steps, result.sample_steps, result.final_loss) == (0, (0,), None)
    assert result.clip_image_similarity == result.clip_image_similarity_initializer
    assert result.clip_image_similarity is not None
    for each in (concept, other):
        kept = bench.store.read_concept(each.concept_id, image_features.FILE)
        found = image_features.ImageFeatures.from_bytes(kept or b"")
        assert (found.scorer, found.model) == (bench.config.scoring.model, each.model_identity)
        expected = crop_features(bench.scorer, each.images).mean(dim=1).numpy()
        np.testing.assert_allclose(found.images, expected, atol=1e-3)
        if each is concept:
            word = fitted.word(expected, 1)["clip_l"]
            np.testing.assert_allclose(bench.vectors(each.concept_id), word, atol=1e-5)
    assert np.abs(bench.vectors("concept-2") - bench.vectors("concept-0")).max() > 0


def test_steps_since_the_last_heartbeat_count(bench: Bench) -> None:
    bench.config = bench.config.override(["service.heartbeat_s=600", "service.lease_timeout_s=1200"])
    status = bench.learn([tiny.concept(index, steps=3) for index in range(2)])
    assert status.steps_computed == 6


def test_what_cannot_be_learned_fails_alone(bench: Bench) -> None:
    long_prompt = "a photo of {}" + " in the beach" * 20
    concepts = [
        tiny.concept(0),
        tiny.concept(1, prompts=(long_prompt.replace("{}", "a") + " {}",)),
        tiny.concept(2, templates=(long_prompt.replace("{}", "a") + " {}",)),
        tiny.concept(3, learning_rate=float("inf"), steps=60),
        tiny.concept(4),
    ]
    status = bench.learn(concepts, errors=["broken"])
    assert (status.done, status.failed) == (2, 4)
    assert [found.concept_id for found in bench.store.results()] == ["concept-0", "concept-4"]
    reasons = {found.concept_id: found.error for found in bench.store.failures()}
    assert reasons["broken"] == "image x.png: is truncated"
    assert "longer than" in reasons["concept-1"]
    assert "longer than" in reasons["concept-2"]
    assert "not finite" in reasons["concept-3"]


def test_two_workers_learn_the_same_as_one(bench: Bench, tiny_sd: Path) -> None:
    concepts = [tiny.concept(index, steps=4 + index % 3) for index in range(8)]
    scheduler = bench.scheduler(concepts)
    other = Bench(
        load_backbone(str(tiny_sd), dtype="float32"), bench.scorer, bench.config, bench.store
    )  # as in another process
    threads = [threading.Thread(target=each.worker(scheduler).run) for each in (bench, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert over(scheduler).done == 8
    for concept in concepts:
        np.testing.assert_allclose(bench.vectors(concept.concept_id), bench.alone(concept), atol=1e-6)


def test_a_lost_worker_s_concepts_go_on_elsewhere(bench: Bench) -> None:
    concepts = [tiny.concept(index, steps=12) for index in range(2)]
    scheduler = bench.scheduler(concepts)
    with pytest.raises(Crash):
        bench.worker(scheduler, crashing(bench, 7), "service.checkpoint_every_s=0.001").run()
    checkpoint = bench.store.read_concept("concept-0", "checkpoint.safetensors")
    assert checkpoint is not None
    bench.worker(scheduler).run()
    status = over(scheduler)
    assert status.done == 2
    assert status.steps_computed < 2 * (7 + 12), "it went on from a checkpoint"
    for concept in concepts:
        np.testing.assert_allclose(bench.vectors(concept.concept_id), bench.alone(concept), atol=1e-6)
        assert [point.step for point in bench.history(concept.concept_id).points] == list(range(13))


def test_a_silent_worker_loses_its_concepts_and_its_late_result_is_harmless(bench: Bench) -> None:
    frozen, let_go = threading.Event(), threading.Event()

    class Freezing(Pack):
        def step(self) -> list[ConceptTask]:
            frozen.set()
            assert let_go.wait(60)
            return super().step()

    concept = tiny.concept(0, steps=5)
    scheduler = bench.scheduler([concept])
    silent = bench.worker(scheduler, Freezing, "service.lease_timeout_s=1200", "service.heartbeat_s=600")
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(silent.run)
        assert frozen.wait(60)
        wait_for(lambda: not scheduler.status(0).running, message="the lease has not expired")
        bench.worker(scheduler).run()
        before = bench.store.result("concept-0")
        let_go.set()
        running.result(60)
    status = over(scheduler)
    assert (status.done, status.failed) == (1, 0)
    assert before is not None
    assert bench.store.result("concept-0") == before, "it isn't written again"
    assert "checkpoint.safetensors" not in bench.store.names("concepts/concept-0")
    assert len(bench.history("concept-0").points) == 6
    np.testing.assert_allclose(bench.vectors("concept-0"), bench.alone(concept), atol=1e-6)


def test_lost_between_the_result_and_its_word_of_it(bench: Bench) -> None:
    """The concept is done by the store: the next worker says so, and does nothing."""
    concept = tiny.concept(0)
    bench.learn([concept])
    before = bench.store.result("concept-0")
    bench.store.write_concept("concept-0", "checkpoint.safetensors", b"left behind")
    scheduler = bench.scheduler([concept])
    wait_for(lambda: scheduler.take("first", 1).leases or scheduler.status(0).running)
    scheduler.leave("first", "killed")
    bench.worker(scheduler).run()
    assert over(scheduler).done == 1
    assert bench.store.result("concept-0") == before
    assert "checkpoint.safetensors" not in bench.store.names("concepts/concept-0")


def test_more_steps_go_on_from_the_final_state(bench: Bench) -> None:
    short, long = tiny.concept(0, steps=4), tiny.concept(0, steps=9, fingerprint="of more steps")
    bench.learn([short])
    status = bench.learn([long])
    assert status.steps_computed == 5
    np.testing.assert_allclose(bench.vectors("concept-0"), bench.alone(long), atol=1e-6)
    assert [point.step for point in bench.history("concept-0").points] == list(range(10))


def test_fewer_steps_start_anew(bench: Bench) -> None:
    """A result depends on its row and the configuration alone, not on what was learned before."""
    long, short = tiny.concept(0, steps=9), tiny.concept(0, steps=4, fingerprint="of fewer steps")
    bench.learn([long])
    assert bench.learn([short]).steps_computed == 4
    np.testing.assert_allclose(bench.vectors("concept-0"), bench.alone(short), atol=1e-6)


def test_other_reviews_dont_learn_again(bench: Bench) -> None:
    bench.learn([tiny.concept(0)])
    other = tiny.concept(0, prompts=("my {}", "a drawing of {}"), fingerprint="of other prompts")
    assert bench.learn([other]).steps_computed == 0
    result = bench.store.result("concept-0")
    assert result is not None
    assert result.sample_prompts == ("my {}", "a drawing of {}")
    assert result.sample_steps == (0, 4), "samples in between can't be made any more"


@pytest.mark.parametrize("damaged", [b"", b"\x08garbage", b"{}"])
def test_a_damaged_checkpoint_is_not_trusted(bench: Bench, damaged: bytes) -> None:
    concept = tiny.concept(0)
    bench.store.write_concept("concept-0", "checkpoint.safetensors", damaged)
    bench.store.write_concept("concept-0", "history.parquet", damaged)
    assert bench.learn([concept]).done == 1
    np.testing.assert_allclose(bench.vectors("concept-0"), bench.alone(concept), atol=1e-6)


def test_a_store_that_refuses_ends_the_job_and_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise StoreError("the output x: access denied", True)

    concept = tiny.concept(0)
    scheduler = bench.scheduler([concept])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", refuse)
        bench.worker(scheduler).run()
    assert scheduler.status(0).problem == "the output x: access denied"
    assert bench.store.result("concept-0") is None
    scheduler = bench.scheduler([concept])
    bench.worker(scheduler).run()
    assert over(scheduler).done == 1


def test_released_when_nothing_is_left_but_what_others_learn(bench: Bench) -> None:
    bench.config = bench.config.model_copy(
        update={"service": bench.config.service.model_copy(update={"release_after_s": 0.2})}
    )
    scheduler = bench.scheduler([tiny.concept(0)])
    wait_for(lambda: scheduler.take("another", 1).leases or scheduler.status(0).running)
    scheduler.beat("another", {"concept-0": 1}, 1)
    thread = threading.Thread(target=bench.worker(scheduler).run)
    thread.start()
    while thread.is_alive():
        scheduler.beat("another", {"concept-0": 1}, 1)
        thread.join(0.1)
    assert not scheduler.is_over()


def test_while_the_store_is_away_steps_go_on_and_one_checkpoint_waits(bench: Bench) -> None:
    store = bench.store = HeldStore(bench.store.uri, "checkpoint")
    scheduler = bench.scheduler([tiny.concept(0, steps=200)])
    worker = bench.worker(scheduler)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        assert store.reached.wait(60)
        step = scheduler.status(0).steps_computed
        wait_for(lambda: scheduler.status(0).steps_computed > step + 50)
        assert worker.pending_writes <= 3
        store.let_through.set()
        running.result(60)
    assert over(scheduler).done == 1


def test_variants_through_the_service(bench: Bench) -> None:
    """What each started from and ended with is in its result, and what it is compared with was sampled."""
    neighbour = {"clip_l": tuple(tuple(row) for row in np.full((2, 32), 0.125).tolist())}
    concepts = [
        tiny.concept(0, steps=6, vectors_added_at=(2, 4), regularization_weight=0.5),
        tiny.concept(1, init_from="vocabulary_mean", initializer_token="", per_image_probability=0.5),
        tiny.concept(2, init_from="auto", initializer_token="", initializer_candidates=("dog", "house")),
        tiny.concept(
            3, init_from="a.safetensors", initializer_token="", initial_vectors=neighbour, num_vectors=2
        ),
    ]
    assert bench.learn(concepts).done == 4
    found = [bench.store.result(concept.concept_id) for concept in concepts]
    assert [result.num_vectors for result in found if result] == [3, 1, 1, 2]
    starts = [result.initializer_token for result in found if result]
    assert (starts[:2], starts[3]) == (["cat", "vocabulary_mean"], "a.safetensors")
    assert starts[2] in ("dog", "house")
    assert [result.options for result in found if result] == [
        {"vectors_added_at": (2, 4), "regularization_weight": 0.5},
        {"init_from": "vocabulary_mean", "per_image_probability": 0.5},
        {"init_from": "auto"},
        {"init_from": "a.safetensors"},
    ]
    for concept, result in zip(concepts, found, strict=True):
        assert result is not None
        assert result.sample_steps[0] == 0
        assert result.clip_image_similarity_initializer is not None
        vectors = bench.vectors(concept.concept_id)
        assert vectors.shape == (result.num_vectors, 32)
        np.testing.assert_allclose(vectors, bench.alone(concept), atol=1e-5)


def test_leased_again_while_its_old_result_waits_to_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was away for so long that the lease expired. The old result ends the concept, not the new lease."""
    bench.config = bench.config.override(
        ["service.heartbeat_s=600", "service.lease_timeout_s=1200", "service.checkpoint_every_s=600"]
    )
    store = bench.store = HeldStore(bench.store.uri, "finish")
    real = Pack.step

    def step(pack: Pack) -> list[ConceptTask]:
        if store.reached.is_set():  # then it is the new lease's
            store.let_through.set()
            assert store.began_twice.wait(60)
        return real(pack)

    monkeypatch.setattr(Pack, "step", step)
    concept = tiny.concept(0)
    scheduler = bench.scheduler([concept])
    worker = bench.worker(scheduler)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        wait_for(store.reached.is_set)
        scheduler.leave(worker.name, "no heartbeat")
        running.result(60)
    status = over(scheduler)
    assert (status.done, status.failed) == (1, 0)
    np.testing.assert_allclose(bench.vectors("concept-0"), bench.alone(concept), atol=1e-6)
    assert "checkpoint.safetensors" not in store.names("concepts/concept-0")


def test_leased_again_while_it_waits_to_be_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two concepts that don't fit, one waits for its checkpoint to be written; then it comes back by a new lease."""
    bench.config = bench.config.override(
        [
            "service.heartbeat_s=600",
            "service.lease_timeout_s=1200",
            "service.checkpoint_every_s=600",
            "pack.size=2",
        ]
    )
    store = bench.store = HeldStore(bench.store.uri, "checkpoint")
    real, sizes = Pack.step, []

    def step(pack: Pack) -> list[ConceptTask]:
        if len(pack.tasks) == 2 and pack.tasks[0].step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if [task.concept.concept_id for task in pack.tasks] == ["concept-0"] and store.reached.is_set():
            store.let_through.set()
            assert store.began_twice.wait(60)
        sizes.append(len(pack.tasks))
        return real(pack)

    monkeypatch.setattr(Pack, "step", step)
    # The first, which has most steps, is leased alone, and the second joins it: the first goes on, then the second...
    concepts = [tiny.concept(0, steps=9), tiny.concept(1, steps=10)]
    scheduler = bench.scheduler(concepts)
    worker = bench.worker(scheduler)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        wait_for(store.reached.is_set)
        scheduler.leave(worker.name, "no heartbeat")
        running.result(60)
    status = over(scheduler)
    assert (status.done, status.failed) == (2, 0)
    for concept in concepts:
        np.testing.assert_allclose(bench.vectors(concept.concept_id), bench.alone(concept), atol=1e-6)
