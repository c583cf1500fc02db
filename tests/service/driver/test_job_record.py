"""job.json: which job an output belongs to, over all its runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support import examples
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import job_record
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.store.job import end
from textinv_ray.service.store.records import JobRecord
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.shown import params_of_job


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest.open(str(examples.write_manifest(tmp_path / "data", 3)))


def begin(store: Store, manifest: Manifest, config: JobConfig, plan: Plan | None = None) -> JobRecord:
    job_record.begin(store, manifest, config, plan or Plan())
    found = store.job()
    assert found is not None
    return found


def test_what_is_known_of_a_job(store: Store, manifest: Manifest) -> None:
    began = time.time()
    job = begin(store, manifest, JobConfig(), Plan(done={"c0", "c1"}, with_result={"c2"}, digest="rows"))
    assert (job.name, job.manifest_rows, job.manifest_digest) == ("out", 3, "rows")
    assert (job.done_before, job.to_replace, job.exit_code) == (2, 1, None)
    assert began <= job.started_at == job.begun_at <= time.time()
    assert {"python", "torch", "ray"} <= set(job.versions)


def test_id_and_name_last_and_the_start_is_that_of_the_configuration(
    store: Store, manifest: Manifest
) -> None:
    first = begin(store, manifest, JobConfig())
    same = begin(store, manifest, JobConfig().override(["service.workers=7"]))
    assert (same.id, same.name, same.started_at) == (first.id, first.name, first.started_at)
    assert same.begun_at > first.begun_at
    waves = begin(store, manifest, JobConfig().override(["service.waves.first=20"]))
    assert waves.config_digest != first.config_digest, "what words begin from is another"
    assert params_of_job(waves)["service.waves.first"] == 20
    assert "service.waves.first" not in params_of_job(first)
    other = begin(store, manifest, JobConfig().override(["training.steps=7"]))
    assert (other.id, other.name) == (first.id, first.name)
    assert other.started_at == other.begun_at
    assert other.config_digest != first.config_digest


def test_a_finished_job_is_recognised(store: Store, manifest: Manifest, tmp_path: Path) -> None:
    config = JobConfig()
    assert not job_record.was_finished(store, manifest, config)
    begin(store, manifest, config)
    assert not job_record.was_finished(store, manifest, config), "it has not ended"
    end(store, 1)
    assert not job_record.was_finished(store, manifest, config), "a concept failed"
    end(store, 0)
    assert job_record.was_finished(store, manifest, config)
    assert job_record.was_finished(store, manifest, config.override(["service.workers=7"]))
    assert not job_record.was_finished(store, manifest, config.override(["training.steps=7"]))
    longer = Manifest.open(str(examples.write_manifest(tmp_path / "data", 4)))
    assert not job_record.was_finished(store, longer, config)


def test_no_credentials(store: Store, manifest: Manifest) -> None:
    config = JobConfig().override(
        [
            "model.path=s3://key:SECRET@b/m",
            "scoring.model=https://h/c?sig=SECRET",
            "tracking.uri=http://me:SECRET@h",
        ]
    )
    begin(store, manifest, config)
    assert b"SECRET" not in (store.read("job.json") or b"SECRET")
