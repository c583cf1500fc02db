"""What a run of the command works on, as all its parts see it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver.console import Screen
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.intake.waves import Waves
from textinv_ray.service.models.sources import ModelFacts
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store


@dataclass(frozen=True)
class Job:
    """A run that was planned."""

    store: Store
    manifest: Manifest
    config: JobConfig
    facts: ModelFacts
    plan: Plan
    console: Console
    """For the user; job.log gets the same lines."""
    preset: str | None = None
    """Name or path of the configuration that `config` was made from; None: the default one."""
    screen: Screen | None = None
    """What shows the console's lines in place of a terminal."""
    waves: Waves | None = None
    """Those of the job; None: all concepts are learned plainly."""
    began: float = field(default_factory=time.time)
    """When the run did, in seconds since 1970."""


@dataclass(frozen=True)
class Outcome:
    """What became of the concepts that a run was to learn, by the store."""

    done: tuple[Result, ...]
    """With the key that was planned."""
    failed: dict[str, str]
    """concept_id -> why; of this run, and not of concepts that are done after all."""
    planned: int
    """Concepts that were to be learned."""

    @classmethod
    def of(cls, plan: Plan, stored: StoredResults, began: float) -> Outcome:
        """By the results and failures that the store has at the run's end. `began`: see Job."""
        done = tuple(result for result in stored.results if plan.todo.get(result.concept_id) == result.key)
        left = plan.todo.keys() - {result.concept_id for result in done}
        failed = {name: why for name, why in stored.failed_since(began).items() if name in left}
        return cls(done, failed, len(plan.todo) + len(plan.later))

    @property
    def unfinished(self) -> int:
        """Concepts that are neither done nor failed."""
        return self.planned - len(self.done) - len(self.failed)
