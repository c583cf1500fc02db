"""A worker on a real scheduler: what it learns depends on the concept alone, and nothing is lost or done twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
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
from textinv_ray.inversion import sampling, words
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.review import Review, Subject
from textinv_ray.inversion.scoring import crop_features
from textinv_ray.service.store import features
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker.engine import Engine
from textinv_ray.service.worker.heartbeat import Heartbeat

pytestmark = pytest.mark.usefixtures("local_ray")


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

    def review(engine: Engine, subjects: Sequence[Subject], **options: Any) -> list[Review]:
        rendered.extend(subjects)
        return plain(engine, subjects, **options)

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


def test_a_result_whose_pictures_are_replaced_is_none_any_more(bench: Bench) -> None:
    """Learned with other settings and not to the end, a concept has no result, rather than one of other pictures."""
    before, after = tiny.concept(0, steps=4), tiny.concept(0, steps=9, fingerprint="of more steps")
    bench.learn([before])
    scheduler = bench.scheduler([after])
    assert bench.store.result("concept-0") is not None, "nobody has begun"
    with pytest.raises(Crash):
        bench.worker(scheduler, crashing(bench, 6), "service.checkpoint_every_s=0.001").run()
    assert bench.store.result("concept-0") is None
    assert bench.learn([before]).done == 1
    result = bench.store.result("concept-0")
    assert result is not None
    assert result.fingerprint == before.fingerprint
    assert result.sample_steps == (0, 2, 4)
    np.testing.assert_allclose(bench.vectors("concept-0"), bench.alone(before), atol=1e-6)


def test_a_review_of_minutes_is_a_sign_of_life(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's beats depend on each batch of pictures, not on the whole."""
    monkeypatch.setattr(sampling, "MAX_BATCH_SIZE", 1)
    ticks: list[int] = []
    monkeypatch.setattr(Heartbeat, "tick", lambda _: ticks.append(1))
    few = bench.learn([tiny.concept(0)])
    first, bench.config = len(ticks), bench.config.override(["review.images_per_prompt=5"])
    more = bench.learn([tiny.concept(1)])
    assert few.done == more.done == 1
    assert len(ticks) - first >= first + 5


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
