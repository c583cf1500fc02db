"""A scheduler in this process and workers on it, without the minutes that starting them as actors takes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import safetensors.numpy

from tests.support.rows import Rows
from tests.support.waiting import wait_for
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.review import Subject, evaluate_words
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.scheduling.protocol import SchedulerInterface, SchedulerStatus
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.history import History
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker.engine import Engine
from textinv_ray.service.worker.worker import Worker


class BenchEngine(Engine):
    """An engine whose packs are of a given class."""

    def __init__(self, bench: Bench, config: JobConfig, pack: type[Pack]) -> None:
        super().__init__(bench.backbone, bench.scorer, config, bench.compiler)
        self._make_pack = partial(pack, bench.backbone, config)

    def pack(self, size: int) -> Pack:
        return self._make_pack(size)


class Bench:
    """A scheduler and the means to work for it."""

    def __init__(self, backbone: Backbone, scorer: Scorer, config: JobConfig, store: Store) -> None:
        self.backbone, self.scorer, self.config, self.store = backbone, scorer, config, store
        self.compiler = "inductor"

    def scheduler(self, concepts: Iterable[Concept], errors: Iterable[str] = ()) -> SchedulerInterface:
        concepts = list(concepts)
        keys = {concept.concept_id: Key(concept.row_fingerprint, "stamp") for concept in concepts}
        keys |= {name: Key("row", "stamp") for name in errors}
        service = self.config.service
        scheduler = Scheduler(
            Rows.of(concepts, errors),
            keys,
            self.store.uri,
            ahead=16,
            lease_timeout_s=service.lease_timeout_s,
            max_attempts=service.max_attempts,
        )
        scheduler.start(tick_s=0.1)
        return scheduler

    def worker(self, scheduler: SchedulerInterface, pack: type[Pack] = Pack, *overrides: str) -> Worker:
        """`pack`: what takes the steps. `overrides`: settings of this worker only."""
        config = self.config.override(overrides)
        return Worker(scheduler, self.store, BenchEngine(self, config, pack), config)

    def learn(self, concepts: Iterable[Concept], errors: Iterable[str] = ()) -> SchedulerStatus:
        """Runs one worker to the end. Returns the scheduler's last status."""
        scheduler = self.scheduler(concepts, errors)
        self.worker(scheduler).run()
        return over(scheduler)

    def vectors(self, concept_id: str) -> np.ndarray:
        data = self.store.read_concept(concept_id, "learned_embeds.safetensors")
        assert data is not None
        (found,) = safetensors.numpy.load(data).values()
        return found

    def alone(self, concept: Concept) -> np.ndarray:
        """What the engine learns without any service."""
        return self.learned_alone(concept).vectors.numpy()

    def learned_alone(self, concept: Concept) -> ConceptTask:
        """As in a notebook: one concept, without any service."""
        pack = Pack(self.backbone, self.config, 1)
        task = ConceptTask(concept, self.backbone, self.config)
        pack.add(task)
        while not task.done or task.evaluation_due:
            if self.config.stopping.rule == "clip" and task.evaluation_due:
                (score,) = evaluate_words(
                    self.backbone, self.scorer, [Subject(concept, task.vectors)], self.config
                )
                task.record(score)
                task.apply_stopping()
            if not task.done:
                pack.step()
        return task

    def history(self, concept_id: str) -> History:
        data = self.store.read_concept(concept_id, "history.parquet")
        assert data is not None
        return History.from_bytes(data)


def over(scheduler: SchedulerInterface) -> SchedulerStatus:
    """The scheduler's status once it has published everything."""
    wait_for(lambda: scheduler.status(0).over)
    return scheduler.status(0)


class Crash(BaseException):
    """What a worker dies of."""


def crashing(bench: Bench, step: int) -> type[Pack]:
    """A pack that dies before the step after `step` of its first concept, when all its concepts have checkpoints."""

    def has_checkpoint(task: ConceptTask) -> bool:
        return bench.store.read_concept(task.concept.concept_id, "checkpoint.safetensors") is not None

    class Crashing(Pack):
        def step(self) -> list[ConceptTask]:
            if self.tasks and self.tasks[0].step >= step:
                wait_for(lambda: all(map(has_checkpoint, self.tasks)))
                raise Crash
            return super().step()

    return Crashing
