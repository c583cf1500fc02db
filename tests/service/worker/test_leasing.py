"""How a worker hears of concepts to learn, and that it must leave."""

from __future__ import annotations

import threading

import pytest

from tests.support import tiny
from tests.support.bench import Bench, over
from tests.support.waiting import wait_for
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.scheduling.protocol import Answer


def patient(bench: Bench) -> Bench:
    """With workers that send heartbeats rarely and are missed late."""
    config = bench.config.override(["service.heartbeat_s=100", "service.lease_timeout_s=300"])
    return Bench(bench.backbone, bench.scorer, config, bench.store)


def test_a_worker_with_free_slots_asks_for_concepts_only_when_there_may_be_some(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = patient(bench)
    scheduler = bench.scheduler([tiny.concept(0, steps=60)])
    asked: list[int] = []
    take = scheduler.take

    def counted(worker: str, count: int, shape: str = "") -> Answer:
        asked.append(count)
        return take(worker, count, shape)

    monkeypatch.setattr(scheduler, "take", counted)
    bench.worker(scheduler, Pack, "pack.size=2").run()
    assert over(scheduler).steps_computed == 60
    assert len(asked) <= 6, "not before each step"


def test_told_to_stop_it_leaves_checkpoints(bench: Bench) -> None:
    """At once, however rarely it sends heartbeats."""
    concept = tiny.concept(0, steps=100_000)
    bench = patient(bench)
    scheduler = bench.scheduler([concept])
    worker = bench.worker(scheduler)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_for(lambda: bench.store.read_concept("concept-0", "checkpoint.safetensors"))
    bench.store.remove("concepts/concept-0/checkpoint.safetensors")
    scheduler.stop()
    thread.join(20)
    assert not thread.is_alive()
    status = scheduler.status(0)
    assert (status.done, status.failed, status.running) == (0, 0, 0)
    assert bench.store.result("concept-0") is None
    (_, state), *_ = bench.store.states("concept-0")
    task = ConceptTask(concept, bench.backbone, bench.config)
    task.restore(state)
    assert task.step > 0
