"""What the service costs: a job of many rows whose steps take no time.

    python benchmarks/scale.py --rows 100000
    python benchmarks/scale.py --rows 100000 --store-only

Real are the manifest, Ray Data, the scheduler, the leases, the workers' loop and the store. Simulated are the learning
and the pictures: a stand-in for the pack, so that all the time is the service's. Prints one line per figure, and
all as JSON with --json PATH. --store-only fills the store without a job, and measures what a finished one costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import psutil
import ray
import torch

from benchmarks import finished_store
from benchmarks.finished_store import SETTINGS, write_manifest
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.review import Review, Subject
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.cluster.layout import WorkerLayout
from textinv_ray.service.driver import job_record
from textinv_ray.service.intake import plan
from textinv_ray.service.intake.preparation import Preparation
from textinv_ray.service.models import sources
from textinv_ray.service.scheduling.client import start_scheduler
from textinv_ray.service.scheduling.protocol import SchedulerInterface
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker.worker import Worker

DIM = 16
"""Numbers in the vector of a simulated word."""
PICTURE = np.zeros((1, 16, 16, 3), np.uint8)


class SimulatedTask:
    """As much of a ConceptTask as the service sees. Its word is its seed."""

    failed = start = stopped = best_step = None
    evaluation_due = is_unchanged = False

    def __init__(self, concept: Concept) -> None:
        self.concept, self.steps, self.step = concept, concept.steps, 0
        self.vectors = self.initial_word = torch.full((1, DIM), float(concept.seed % 1000))

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    @property
    def loss_history(self) -> torch.Tensor:
        return torch.ones(self.step)

    def to_bytes(self) -> bytes:
        return b"state" + bytes(512)

    def restore(self, state: bytes) -> None:
        raise ValueError("simulated")


class SimulatedPack:
    """A Pack whose steps take no time, or only wait."""

    def __init__(self, size: int, step_s: float) -> None:
        self.size, self.step_s = size, step_s
        self.tasks: list[SimulatedTask] = []

    @property
    def free(self) -> int:
        return self.size - len(self.tasks)

    @property
    def shape(self) -> tuple[int, int] | None:
        return self.tasks[0].concept.shape if self.tasks else None

    def add(self, task: SimulatedTask) -> None:
        self.tasks.append(task)

    def remove(self, task: SimulatedTask) -> None:
        self.tasks.remove(task)

    def step(self) -> list[SimulatedTask]:
        time.sleep(self.step_s)
        for task in self.tasks:
            task.step += 1
        leavers = [task for task in self.tasks if task.done]
        self.tasks = [task for task in self.tasks if not task.done]
        return leavers


class SimulatedEngine:
    """An Engine without a model."""

    def __init__(self, pack_size: int, step_s: float) -> None:
        self._pack_size, self._step_s = pack_size, step_s

    def task(self, concept: Concept) -> SimulatedTask:
        return SimulatedTask(concept)

    def pack_size(self, store: Store, task: SimulatedTask) -> int:
        return self._pack_size

    def pack(self, size: int) -> SimulatedPack:
        return SimulatedPack(size, self._step_s)

    def compile(self, task: SimulatedTask, size: int) -> None:
        """There is nothing to compile."""

    def review(self, subjects: Sequence[Subject], **_: object) -> list[Review]:
        return [Review({"a photo of {}": PICTURE}, 0.5, 0.25) for _ in subjects]

    def evaluate(self, subjects: Sequence[Subject], **_: object) -> list[float]:
        return [0.5 for _ in subjects]

    def split(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"clip_l": vectors}

    def nearest_words(self, vectors: torch.Tensor) -> dict[str, list[str]]:
        return {"clip_l": ["cat"]}


@ray.remote(num_cpus=0)
def work(scheduler: SchedulerInterface, output: str, config: dict[str, Any]) -> None:
    """One worker."""
    simulate(scheduler, output, config, pack_size=16, step_s=0.0)


def simulate(
    scheduler: SchedulerInterface, output: str, config: dict[str, Any], pack_size: int, step_s: float
) -> None:
    """Makes this process a worker that learns nothing, until the scheduler has no more for it."""
    torch.set_num_threads(1)
    engine = SimulatedEngine(pack_size, step_s)
    Worker(scheduler, Store(output), engine, JobConfig.from_dict(config)).run()  # type: ignore[arg-type]


def scheduler_process() -> psutil.Process:
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("ray::Scheduler"):
            return child
    raise RuntimeError("no scheduler")


def learn(path: Path, output: Path, config: JobConfig, workers: int) -> dict[str, float]:
    """Runs the job. Returns seconds and memory."""
    opened, facts, store = Manifest.open(str(path)), sources.facts(config.model), Store(str(output))
    began = time.perf_counter()
    checks.check(opened, config)
    checked = time.perf_counter()
    todo = plan.make(opened, config, facts, StoredResults.read(store))
    planned = time.perf_counter()
    job_record.begin(store, opened, config, todo)
    size = WorkerLayout(workers, 1.0, 0.0, 0.1)
    rows = Preparation(opened, config, facts, store.uri, (), size.prepare_cpus)
    scheduler = start_scheduler(rows, todo.todo, store.uri, config, size)
    workers_running = [work.remote(scheduler, store.uri, config.to_dict()) for _ in range(workers)]
    cursor, first, memory = 0, 0.0, []
    while True:
        status = scheduler.status(cursor)
        cursor = status.cursor
        if (status.running or status.done) and not first:
            first, done_at_first = time.perf_counter(), status.done
            process = scheduler_process()
        if first:
            memory.append((process.memory_info().rss, psutil.Process().memory_info().rss))
        if status.over or status.problem:
            break
        ray.get(ray.wait(workers_running, timeout=0)[0])  # raises what a worker died of
        time.sleep(0.5 if first else 0.05)  # a small job is over soon after it began
    end = time.perf_counter()
    ray.get(workers_running)
    if status.problem or status.done != len(todo.todo):
        raise SystemExit(f"it went wrong: {status}")
    late = memory[len(memory) // 2 :]
    scheduler.kill()
    finished_store.end(store)
    return {
        "check the manifest, s": checked - began,
        "plan an empty store, s": planned - checked,
        "concepts per second": (status.done - done_at_first) / (end - first),
        "overhead per concept, ms of one worker": 1000
        * workers
        * (end - first)
        / (status.done - done_at_first),
        "scheduler memory at most, MB": max(used for used, _ in memory) / 2**20,
        "scheduler memory, second half minus first quarter, MB": (
            statistics.mean(used for used, _ in late)
            - statistics.mean(used for used, _ in memory[: len(memory) // 4 + 1])
        )
        / 2**20,
        "driver memory at most, MB": max(driver for _, driver in memory) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--store-only", action="store_true", help="fill the store without a job")
    parser.add_argument("--dim", type=int, default=DIM, help="with --store-only: numbers in a word's vector")
    parser.add_argument("--json", metavar="PATH")
    arguments = parser.parse_args()
    config = JobConfig.load("mini", list(SETTINGS))
    with tempfile.TemporaryDirectory() as folder:
        path, output = write_manifest(Path(folder), arguments.rows), Path(folder) / "out"
        figures: dict[str, float] = {"rows": arguments.rows}
        if arguments.store_only:
            figures["numbers in a vector"] = arguments.dim
            finished_store.fill(path, output, config, arguments.dim)
        else:
            figures["workers"] = arguments.workers
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            figures |= learn(path, output, config, arguments.workers)
        figures |= finished_store.measure(path)
    for name, value in figures.items():
        print(f"{name:50} {value:,.1f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
