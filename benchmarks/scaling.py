"""How throughput grows with the number of workers.

    python benchmarks/scaling.py [--workers 1,2] [--simulated 1,2,4,8] [--repeats 2] [--json PATH]

Real: jobs of the bundled model, each worker with one core, from the first step to the last result (start and end of
Ray aside); as many workers as the machine has cores. Simulated: workers whose steps only wait, as a CPU does while a
GPU works, with the real scheduler, leases, heartbeats and store: what the service itself loses. Efficiency is the
throughput per worker, of real workers relative to the first number of --workers, of simulated ones to their waiting.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

from benchmarks import finished_store, job, measure, scale
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.cluster.layout import WorkerLayout
from textinv_ray.service.intake import plan
from textinv_ray.service.intake.preparation import Preparation
from textinv_ray.service.models import sources
from textinv_ray.service.scheduling.client import start_scheduler
from textinv_ray.service.scheduling.protocol import SchedulerInterface
from textinv_ray.service.store.pictures import png
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store

PACK_SIZE = 16
ROUNDS = 4


def real(
    counts: list[int], repeats: int, concepts: int, settings: list[str], folder: Path
) -> list[dict[str, Any]]:
    """Jobs with so many workers, in turns."""
    config = JobConfig.load("mini", settings)
    rows = [
        {
            "concept_id": f"{concept.concept_id}-{number}",
            "images": [{"bytes": png(image), "path": "image.png"} for image in concept.images[:, 0]],
            "initializer_token": concept.initializer_token,
            "learnable_property": concept.learnable_property,
            "num_vectors": concept.num_vectors,
        }
        for number, concept in zip(range(concepts), cycle(job.concepts_of(str(job.EXAMPLES), config)))
    ]
    manifest = job.write_manifest(folder, rows)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for repeat in range(repeats):
        for count in counts:
            output = folder / f"{count}-{repeat}"
            run = job.run(
                manifest, output, "mini", [f"service.workers={count}", "tracking.enabled=false", *settings]
            )
            rates[count].append(3600 * run.concepts / run.learning_seconds)
            print(f"{count} workers: {rates[count][-1]:.0f} concepts per hour", flush=True)
    medians = {count: statistics.median(found) for count, found in rates.items()}
    first = medians[counts[0]] / counts[0]
    return [_row("real", count, rate, rate / count / first) for count, rate in medians.items()]


@ray.remote(num_cpus=0)
def work(
    scheduler: SchedulerInterface,
    output: str,
    config: dict[str, Any],
    step_s: float,
    ready: str,
    workers: int,
) -> None:
    """One simulated worker, which begins when all are there."""
    (Path(ready) / str(os.getpid())).touch()
    while len(list(Path(ready).iterdir())) < workers:
        time.sleep(0.05)
    scale.simulate(scheduler, output, config, PACK_SIZE, step_s)


def simulated(workers: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Each worker takes ROUNDS packs of PACK_SIZE concepts whose steps wait for `seconds` in all."""
    config = JobConfig.load("mini", list(finished_store.SETTINGS))
    concepts = workers * ROUNDS * PACK_SIZE
    folder.mkdir()
    path, output, ready = finished_store.write_manifest(folder, concepts), folder / "out", folder / "ready"
    ready.mkdir()
    opened, facts, store = Manifest.open(str(path)), sources.facts(config.model), Store(str(output))
    todo = plan.make(opened, config, facts, StoredResults()).todo
    size = WorkerLayout(workers, 1.0, 0.0, 0.1)
    scheduler = start_scheduler(
        Preparation(opened, config, facts, store.uri, (), size.prepare_cpus), todo, store.uri, config, size
    )
    arguments = (scheduler, store.uri, config.to_dict(), seconds / finished_store.STEPS, str(ready), workers)
    ray.get([work.remote(*arguments) for _ in range(workers)])
    finished = sorted(found.finished_at for found in store.results())
    scheduler.kill()
    if len(finished) != concepts:
        raise SystemExit(f"{len(finished)} of {concepts} concepts were finished")
    # From the last worker's readiness on, so that starting processes doesn't count.
    spent = finished[-1] - max(file.stat().st_mtime for file in ready.iterdir())
    return _row("simulated", workers, 3600 * concepts / spent, ROUNDS * seconds / spent)


def _row(kind: str, workers: int, rate: float, efficiency: float) -> dict[str, Any]:
    return {"workers": f"{workers} {kind}", "concepts per hour": rate, "efficiency": efficiency}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=numbers, default=[n for n in (1, 2, 4) if n <= cores])
    parser.add_argument("--concepts", type=int, default=16, help="of a real job")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--simulated", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=8.0, help="of waiting per simulated pack")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    print(measure.machine_line(), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.workers:
            rows += real(options.workers, options.repeats, options.concepts, options.set, folder)
        if options.simulated:
            path = os.pathsep.join(filter(None, [str(job.REPOSITORY), os.environ.get("PYTHONPATH")]))
            environment = {"env_vars": {"PYTHONPATH": path}}  # workers import this folder's modules
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                runtime_env=environment,
            )
            for count in options.simulated:
                rows.append(simulated(count, options.seconds, folder / f"simulated-{count}"))
            ray.shutdown()
    print(measure.table(rows))
    measure.write_json(options.json, {**vars(options), "rows": rows})


if __name__ == "__main__":
    main()
