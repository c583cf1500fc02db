"""Workers that are lost or fall silent, and writes that wait while the store is away: nothing is lost or done twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import examples, tiny
from tests.support.bench import Bench, Crash, crashing, over
from tests.support.waiting import wait_for
from textinv_ray.concepts.concept import Concept
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker.heartbeat import Heartbeat

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


def test_while_the_store_is_away_steps_go_on_and_one_checkpoint_waits(bench: Bench) -> None:
    store = bench.store = HeldStore(bench.store.uri, "checkpoint")
    scheduler = bench.scheduler([tiny.concept(0, steps=100)])
    worker = bench.worker(scheduler)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        assert store.reached.wait(60)
        step = scheduler.status(0).steps_computed
        wait_for(lambda: scheduler.status(0).steps_computed > step + 20)
        assert worker.pending_writes <= 3
        store.let_through.set()
        running.result(60)
    assert over(scheduler).done == 1


def test_while_the_store_is_away_few_concepts_are_begun(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done stays in memory until it is written: there must not be more and more of it."""
    bench.config = bench.config.override(["pack.size=2"])
    store = bench.store = HeldStore(bench.store.uri, "finish")
    scheduler = bench.scheduler([tiny.concept(index, steps=1) for index in range(12)])
    worker = bench.worker(scheduler)
    rounds: list[int] = []
    monkeypatch.setattr(Heartbeat, "tick", lambda _: rounds.append(1))
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        assert store.reached.wait(60)
        wait_for(lambda: scheduler.status(0).running > 4)
        seen = len(rounds)
        wait_for(lambda: len(rounds) >= seen + 4)
        assert scheduler.status(0).running <= 6
        store.let_through.set()
        running.result(60)
    assert over(scheduler).done == 12


def learned_though_taken_for_lost(bench: Bench, store: HeldStore, concepts: list[Concept]) -> None:
    """One worker learns all, although its leases end while its first write is held."""
    scheduler = bench.scheduler(concepts)
    worker = bench.worker(scheduler)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(worker.run)
        wait_for(store.reached.is_set)
        scheduler.leave(worker.name, "no heartbeat")
        running.result(60)
    status = over(scheduler)
    assert (status.done, status.failed) == (len(concepts), 0)
    for concept in concepts:
        np.testing.assert_allclose(bench.vectors(concept.concept_id), bench.alone(concept), atol=1e-6)


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
    learned_though_taken_for_lost(bench, store, [tiny.concept(0)])
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
    learned_though_taken_for_lost(bench, store, concepts)


def test_a_worker_that_died_while_it_finished(bench: Bench) -> None:
    """The result was there; what the concept has from before it goes."""
    concept = tiny.concept(0, steps=4)
    assert bench.learn([concept]).done == 1
    bench.store.write_concept("concept-0", "checkpoint.safetensors", b"older")
    examples.fail(bench.store, "concept-0", "of an earlier run")
    scheduler = bench.scheduler([concept])
    assert wait_for(lambda: scheduler.take("dead", 1).leases)
    scheduler.leave("dead", "it died")
    bench.worker(scheduler).run()
    status = over(scheduler)
    assert (status.done, status.steps_computed) == (1, 0)
    assert bench.store.read_concept("concept-0", "checkpoint.safetensors") is None
    assert bench.store.failure("concept-0") is None
