"""A job reads each result once at its start and once at its end, however many parts want it."""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.support import examples
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver.end import end
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.run import invert
from textinv_ray.service.driver.signals import Stopping
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store

IDS = ("c0", "c1", "c2")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return examples.write_manifest(tmp_path / "data", len(IDS))


@pytest.fixture
def config(tiny_sd: Path, tiny_clip: Path) -> JobConfig:
    return examples.config(tiny_sd, tiny_clip)


@pytest.fixture
def job(tmp_path: Path, manifest: Path, config: JobConfig) -> Job:
    """A job that has learned all of its concepts."""
    opened, facts, store = (
        Manifest.open(str(manifest)),
        sources.facts(config.model),
        Store(str(tmp_path / "out")),
    )
    todo = plan.make(opened, config, facts, StoredResults())
    for concept_id, key in todo.todo.items():
        examples.finish(store, concept_id, **key._asdict())
    return Job(store, opened, config, facts, todo, Console(file=io.StringIO()))


@pytest.fixture
def reads(job: Job, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read and each folder was listed."""
    found: Counter[str] = Counter()
    read, names = Store.read, Store.names

    def counted_read(self: Store, name: str) -> bytes | None:
        found[name] += 1
        return read(self, name)

    def counted_names(self: Store, folder: str) -> list[str]:
        found[folder] += 1
        return names(self, folder)

    monkeypatch.setattr(Store, "read", counted_read)
    monkeypatch.setattr(Store, "names", counted_names)
    return found


def of_results(reads: Counter[str]) -> list[int]:
    return [reads[f"concepts/{concept_id}/result.json"] for concept_id in IDS]


@pytest.mark.parametrize("options", [{}, {"dry_run": True}])
def test_a_start(job: Job, manifest: Path, reads: Counter[str], options: dict[str, bool]) -> None:
    assert invert(str(manifest), job.config, output=job.store.uri, **options) == 0  # type: ignore[arg-type]
    assert of_results(reads) == [1, 1, 1]
    assert (reads["concepts"], reads["failed"]) == (1, 1)


def test_an_end(job: Job, reads: Counter[str]) -> None:
    assert end(job, None, Stopping(), time.monotonic()) == 0
    assert of_results(reads) == [1, 1, 1]
    assert (reads["concepts"], reads["failed"]) == (1, 1)
    assert [reads[f"concepts/{concept_id}/learned_embeds.safetensors"] for concept_id in IDS] == [1, 1, 1]
    assert pq.read_table(job.store.path("results.parquet"))["concept_id"].to_pylist() == list(IDS)
    assert "3 of 3 concepts learned" in said(job)


def said(job: Job) -> str:
    assert isinstance(job.console.file, io.StringIO)
    return job.console.file.getvalue()
