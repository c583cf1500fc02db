"""Jobs as users start them, with means to disturb them and to check the outcome."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import safetensors.numpy

from tests.support import examples
from tests.support.commands import LOCAL_RAY, Command, as_options, script
from textinv_ray.concepts import prepare
from textinv_ray.concepts.predicted_start import PredictedStart
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models import sources
from textinv_ray.service.store.store import Store

# Of a word's norm. Another pack size changes the order of float32 sums, which Adam makes visible where a gradient is
# next to zero: 0.0006 was seen. A single step more is 0.005 to 0.03.
TOLERANCE = 0.002


class Job:
    """`jobs/invert_many.py` over data/manifest.parquet in a folder, its output and its log."""

    def __init__(
        self, folder: Path, settings: Iterable[str], output: str = "out", address: str = "local"
    ) -> None:
        """`output`: a folder in `folder`, or a URI. `address`: of the Ray; "local" starts one for each run."""
        self.folder = folder
        self.settings = list(settings)
        self.output = output
        self.environment = {**LOCAL_RAY, "RAY_ADDRESS": address}
        self._started: list[Command] = []
        self.store = Store(output if "://" in output else str(folder / output))

    def inject(self, fault: str) -> None:
        """Has this run in every Python process of the job, with the class Pack at hand, before it is used."""
        inject = self.folder / "inject"
        inject.mkdir(exist_ok=True)
        body = "\n".join(f"    {line}" for line in fault.strip().splitlines())
        (inject / "sitecustomize.py").write_text(_SITECUSTOMIZE.replace("    ...", body))
        self.environment["PYTHONPATH"] = f"{inject}:{os.environ.get('PYTHONPATH', '')}"

    def start(self, *options: str) -> Command:
        process = Command(
            script(
                "invert_many",
                *("data/manifest.parquet", "-o", self.output, *as_options(self.settings), *options),
            ),
            self.folder / f"run-{len(self._started)}",
            self.folder,
            self.environment,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Nothing that a failed test left goes on."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def run(self, *options: str) -> tuple[int, str]:
        """Starts it and waits for its end. Returns (exit code, what it printed)."""
        return self.start(*options).ended()

    def log(self) -> str:
        """What driver and workers logged, over all runs."""
        return (self.store.read("job.log") or b"").decode(errors="replace")

    def begun(self) -> list[tuple[str, int]]:
        """(concept_id, step it was begun or taken up at), in order, by the log."""
        return [(name, int(step)) for name, step in re.findall(r"(\S+): from step (\d+) of", self.log())]

    def resumed(self) -> list[tuple[str, int]]:
        """Those of `begun` that went on from a checkpoint."""
        return [(name, step) for name, step in self.begun() if step > 0]

    def holder_of_a_checkpoint(self) -> int | None:
        """Process id of a worker, by the log, with a concept that has a checkpoint and isn't done."""
        begun = re.findall(r"pid=(\d+)\).* (\S+): from step", self.log())
        in_work = set(self.checkpoints()) - self.done().keys()
        return next((int(pid) for pid, name in reversed(begun) if name in in_work), None)

    def checkpoints(self) -> list[str]:
        """Concepts that have a checkpoint."""
        return [
            concept_id
            for concept_id in self.store.names("concepts")
            if "checkpoint.safetensors" in self.store.names(f"concepts/{concept_id}")
        ]

    def done(self) -> dict[str, float]:
        """concept_id -> when it was finished."""
        return {found.concept_id: found.finished_at for found in self.store.results()}

    def vectors(self, concept_id: str) -> np.ndarray:
        data = self.store.read_concept(concept_id, "learned_embeds.safetensors")
        assert data is not None
        (found,) = safetensors.numpy.load(data).values()
        return found

    def assert_all_done(self, words: dict[str, np.ndarray]) -> None:
        """Every concept once, complete, and with the words of an undisturbed run."""
        assert sorted(self.done()) == sorted(words)
        assert list(self.store.failures()) == []
        assert self.checkpoints() == []
        for concept_id, vectors in words.items():
            difference = np.linalg.norm(self.vectors(concept_id) - vectors) / np.linalg.norm(vectors)
            assert difference < TOLERANCE, f"{concept_id}: {difference:.4f} of its norm away"


def words(
    folder: Path,
    settings: Iterable[str],
    only: Collection[str] = (),
    given: PredictedStart | None = None,
) -> dict[str, np.ndarray]:
    """What one process without any service learns of the manifest in `folder`: concept_id -> (V, D).

    D: of all text encoders together. `given`: the predictor that all start from.
    """
    from textinv_ray.inversion.families.loading import load_backbone
    from textinv_ray.inversion.pack import Pack
    from textinv_ray.inversion.prediction import with_prediction
    from textinv_ray.inversion.task import ConceptTask
    from textinv_ray.service.models import loading

    config = JobConfig.load("mini", list(settings))
    facts = sources.facts(config.model)
    opened = Manifest.open(str(folder / "data" / "manifest.parquet"))
    backbone = load_backbone(sources.resolve(config.model.path), dtype="float32")
    scorer = loading.scorer(config) if given else None
    tasks = []
    for row in opened.rows():
        if not only or row["concept_id"] in only:
            concept = prepare.make(
                row,
                config,
                base=opened.base,
                resolution=facts.resolution,
                model_identity=facts.identity,
                given=given,
            )
            concept = with_prediction(concept, scorer) if scorer else concept
            tasks.append(ConceptTask(concept, backbone, config))
    for start in range(0, len(tasks), 4):
        pack = Pack(backbone, config, 4)
        for task in tasks[start : start + 4]:
            pack.add(task)
        while pack.tasks:
            pack.step()
    return {task.concept.concept_id: task.vectors.numpy() for task in tasks}


def quick(*overrides: str) -> list[str]:
    """Settings of --set: the bundled model, seconds of work, and everything that notices faults soon."""
    return [
        "training.steps=40",
        "stopping.rule=none",
        "training.batch_size=1",
        "model.dtype=float32",
        "scoring.num_images=1",
        "review.images_per_prompt=1",
        "review.num_inference_steps=2",
        "pack.size=2",
        "service.workers=2",
        # One per node of two cores and none on the head, with one thread: all of them share this machine's
        # cores, and threads that wait for one another spin meanwhile.
        "service.cpus_per_worker=1.1",
        "service.heartbeat_s=0.3",
        "service.lease_timeout_s=10",
        "service.checkpoint_every_s=0.2",
        "tracking.enabled=false",
        *overrides,
    ]


def make(folder: Path, address: str, count: int, *overrides: str, output: str = "out") -> Job:
    """A job over `count` concepts."""
    examples.write_manifest(folder / "data", count)
    return Job(folder, quick(*overrides), output, address)


_SITECUSTOMIZE = '''
"""Python runs this when it starts. It changes a class as soon as its module is loaded."""

import importlib.abc
import importlib.util
import os
import sys


def change(Pack):
    ...


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "textinv_ray.inversion.pack":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            change(module.Pack)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''
