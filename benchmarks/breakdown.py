"""Where the time goes: of a packed step, and of a whole concept on its worker.

    python benchmarks/breakdown.py [--model mini-sd|sd15|sdxl|FOLDER] [--pack 4] [--steps 30] [--json PATH]

The step: its parts, timed from outside, as medians over --steps steps. The whole concept: one worker of the service
learns the example concepts as `--config` says, with scheduler and store but in one process; starting Ray and loading
models aside. A part that contains others counts without them; what no part names is "the rest".
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import torch

from benchmarks import measure
from benchmarks.step import WARM_UP_STEPS, filled, load, run
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import pack as packs
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask

Parts = list[tuple[str, Any, str]]
"""(what it is called in the table, its module or class, its name there)"""
STEP: Parts = [
    ("random draws", ConceptTask, "draw"),
    ("text encoder, forward", StableDiffusion, "encode"),
    ("UNet, forward", Backbone, "predict"),
    ("Adam, clipping and checks", packs, "update"),
    ("penalties", Pack, "_penalty_gradient"),
    ("concepts that leave", Pack, "_leavers"),
]


class Clock:
    """Seconds by part, of one thread: what others do, such as writing, isn't part of a worker's time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside counts as this part, but for parts inside it."""
        start = measure.now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = measure.now() - start
            self.seconds[name] += whole - self._inner.pop()
            self._inner[-1] += whole

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as this part."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper


@contextmanager
def watched(parts: Parts, clock: Clock) -> Iterator[None]:
    """While entered, the clock knows what is spent in each of the parts."""
    before = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in parts]
    for (name, owner, attribute), (_, _, function) in zip(parts, before, strict=True):
        setattr(owner, attribute, clock.timed(name, function))
    try:
        yield
    finally:
        for owner, attribute, function in before:
            setattr(owner, attribute, function)


@contextmanager
def backward_split(clock: Clock) -> Iterator[None]:
    """Tells the UNet's part of the backward pass from the text encoder's: where the prompts' gradient arrives."""
    encode, grad = StableDiffusion.encode, torch.autograd.grad
    arrived = [0.0]

    def note(_gradient: torch.Tensor) -> None:
        arrived[0] = measure.now()

    def encode_with_hook(*args: Any, **kwargs: Any) -> Condition:
        condition = encode(*args, **kwargs)
        condition.hidden_states.register_hook(note)
        return condition

    def timed_grad(*args: Any, **kwargs: Any) -> Any:
        start = measure.now()
        result = grad(*args, **kwargs)
        clock.seconds["UNet, backward"] += arrived[0] - start
        clock.seconds["text encoder, backward"] += measure.now() - arrived[0]
        return result

    StableDiffusion.encode, torch.autograd.grad = encode_with_hook, timed_grad  # type: ignore[method-assign]
    try:
        yield
    finally:
        StableDiffusion.encode, torch.autograd.grad = encode, grad  # type: ignore[method-assign]


def of_step(model: str, dtype: str, pack_size: int, batch_size: int, steps: int) -> list[dict[str, Any]]:
    """Milliseconds and share of each part of a step."""
    config = JobConfig.from_dict({"training": {"max_nonfinite_steps": 10**9}})
    pack = filled(load(model, dtype), config, pack_size, batch_size)
    run(pack, WARM_UP_STEPS)
    plain, spent = [], []
    for _ in range(steps):  # in turns: what watching costs is told too
        start = measure.now()
        pack.step()
        plain.append(measure.now() - start)
        clock = Clock()
        with watched(STEP, clock), backward_split(clock):
            start = measure.now()
            pack.step()
            clock.seconds["whole"] = measure.now() - start
        spent.append(clock.seconds)
    print(f"(a step takes {1000 * statistics.median(plain):.3g} ms when it isn't watched)")
    names = list(dict.fromkeys(name for seconds in spent for name in seconds if name != "whole"))
    parts = {name: statistics.median(seconds[name] for seconds in spent) for name in names}
    return shares(parts, statistics.median(seconds["whole"] for seconds in spent), "ms", 1000)


def shares(parts: dict[str, float], whole: float, unit: str, factor: float) -> list[dict[str, Any]]:
    """Rows of a table, the largest part first."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    ordered += [("the rest", whole - sum(parts.values())), ("whole", whole)]
    return [
        {"": name, unit: factor * seconds, "per cent": round(100 * seconds / whole, 1)}
        for name, seconds in ordered
    ]


def of_concept(config: JobConfig, limit: int | None) -> list[dict[str, Any]]:
    """Seconds and share of each part of a concept, as the mean over the example concepts."""
    import ray

    from benchmarks import job
    from tests.support.bench import Bench
    from textinv_ray.inversion.scoring import Scorer
    from textinv_ray.service.models import sources
    from textinv_ray.service.store.store import Store
    from textinv_ray.service.worker.engine import Engine
    from textinv_ray.service.worker.leasing import Leasing
    from textinv_ray.service.worker.writing import Writer

    parts: Parts = [
        ("choosing the pack size", Engine, "pack_size"),
        ("latents, prompts, initial state", Leasing, "take"),
        ("steps", Pack, "step"),
        ("refilling the pack", Pack, "add"),
        ("samples and scores", Engine, "review"),
        ("evaluations of the stopping rule", Engine, "evaluate"),
        ("results and histories", Writer, "finish"),
        ("checkpoints", Writer, "save"),
    ]
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    clock = Clock()
    try:
        start = time.perf_counter()
        concepts = job.concepts_of(str(job.EXAMPLES), config, limit)
        prepared = time.perf_counter() - start
        backbone = load_backbone(sources.resolve(config.model.path), dtype=config.model.dtype)
        scorer = Scorer.load(sources.resolve(config.scoring.model))
        with tempfile.TemporaryDirectory() as folder, watched(parts, clock):
            bench = Bench(backbone, scorer, config, Store(folder))
            start = time.perf_counter()
            bench.learn(concepts)
            whole = time.perf_counter() - start
    finally:
        ray.shutdown()
    count = len(concepts)
    print(
        f"({count} concepts, {config.training.steps} steps each; fetching and decoding, "
        f"which other processes do, took {prepared / count:.3g} s a concept)"
    )
    return shares({name: spent / count for name, spent in clock.seconds.items()}, whole / count, "s", 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-sd", help="of the step: as in step.py")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--pack", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--steps", type=int, default=30, help="watched ones of the step's profile; 0: no profile"
    )
    parser.add_argument("--config", default="mini", help="of the whole concept")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--limit", type=int, help="take the first example concepts only; 0: no profile")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    print(measure.machine_line(), flush=True)
    step, whole = [], []
    if options.steps:
        print(f"\nA step of {options.pack} concepts, batch size {options.batch_size}, {options.model}")
        step = of_step(options.model, options.dtype, options.pack, options.batch_size, options.steps)
        print(measure.table(step))
    if options.limit != 0:
        print(f"\nA whole concept, {options.config}")
        whole = of_concept(JobConfig.load(options.config, options.set), options.limit)
        print(measure.table(whole))
    measure.write_json(options.json, {**vars(options), "step": step, "concept": whole})


if __name__ == "__main__":
    main()
