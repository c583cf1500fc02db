"""A job as users start it, and what it took: for the benchmarks of the whole service."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import PeakMemory
from textinv_ray.concepts import word_files
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import concept_of
from textinv_ray.service.models import sources
from textinv_ray.service.store.history import History
from textinv_ray.service.store.store import Store

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples" / "manifest.parquet"
"""Held-out characters and styles: no training of the bundled models saw them."""

STYLES_AS_OBJECTS = "training.style={}"
"""For benchmarks that compare settings of `training`: words of styles would have others. `--set` comes after it."""


@dataclass(frozen=True)
class Run:
    """What one run of the command took."""

    output: str
    concepts: int
    steps: int
    """Of all concepts together."""
    seconds: float
    """From command to prompt."""
    seconds_to_first_step: float
    learning_seconds: float
    """From the end of the first step to that of the last concept: reviews included, start and end of Ray not."""
    memory_bytes: int
    """The most, of all its processes."""
    device_bytes: int

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.learning_seconds


def concepts_of(manifest: str, config: JobConfig, limit: int | None = None) -> list[Concept]:
    """The rows of a manifest with their images, prepared as the job would; captions, which few have, are left out."""
    opened, facts = Manifest.open(manifest), sources.facts(config.model)
    checks.check(opened, config)
    rows = [
        {name: value for name, value in row.items() if name != "captions"}
        for row in itertools.islice(opened.rows(), limit)
    ]
    return [concept_of(row, config, opened.base, facts) for row in rows]


def write_manifest(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A manifest of these rows."""
    path = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def command(manifest: Path, output: Path, config: str, settings: Sequence[str]) -> list[str]:
    """What users type."""
    started = [sys.executable, str(REPOSITORY / "jobs" / "invert_many.py"), str(manifest)]
    chosen = ["--config", config, "--output", str(output)]
    return [*started, *chosen, *(part for setting in settings for part in ("--set", setting))]


def environment() -> dict[str, str]:
    """With a Ray of the job's own."""
    return {**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}


def run(manifest: Path, output: Path, config: str, settings: Sequence[str]) -> Run:
    """Runs jobs/invert_many.py on a Ray of its own. Raises SystemExit, with what it said, when it fails."""
    began, log = time.time(), output.with_suffix(".log")
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command(manifest, output, config, settings),
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        with PeakMemory(process.pid) as memory:
            code = process.wait()
    seconds = time.time() - began
    if code:
        raise SystemExit(f"the job ended with exit code {code}:\n{log.read_text()[-3000:]}")
    results, first = list(Store(str(output)).results()), first_step(output)
    return Run(
        output=str(output),
        concepts=len(results),
        steps=sum(found.steps for found in results),
        seconds=seconds,
        seconds_to_first_step=first - began,
        learning_seconds=max(found.finished_at for found in results) - first,
        memory_bytes=memory.bytes,
        device_bytes=memory.device_bytes,
    )


def first_step(output: Path) -> float:
    """When the first step of all was over, in seconds since the epoch."""
    store, found = Store(str(output)), []
    for result in store.results():
        data = store.read_concept(result.concept_id, "history.parquet")
        assert data is not None
        found.append(History.from_bytes(data).points[1].time_ms / 1000)
    return min(found)


def words(run: Run) -> dict[str, Any]:
    """Concept id -> word."""
    found = {}
    for result in Store(run.output).results():
        data = Store(run.output).read_concept(result.concept_id, "learned_embeds.safetensors")
        assert data is not None
        ((_, word),) = word_files.parse_words(data, word_files.STORED).items()
        found[result.concept_id] = word
    return found
