"""Waves: what happens between them, and a job that is stopped and killed."""

from __future__ import annotations

import io
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.support import catalogue, examples, jobs
from tests.support.jobs import Job as RunningJob
from textinv_ray.concepts.predicted_start import PredictedStart
from textinv_ray.concepts.predictor import Example, Predictor
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.cluster import connection
from textinv_ray.service.driver import job_record, run
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.messages import print_start
from textinv_ray.service.driver.waves import second_part
from textinv_ray.service.intake import plan, waves
from textinv_ray.service.models import sources
from textinv_ray.service.store.records import WAVES, WavesRecord
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import status
from textinv_ray.util.errors import UserError

COUNT, FIRST = 16, 12
FEW, REST = 10, 3
"""Of the job that runs: a predictor needs ten words."""


@pytest.fixture
def job(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Job:
    """A job that has learned nothing yet."""
    config = examples.config(tiny_sd, tiny_clip, f"service.waves.first={FIRST}")
    manifest = Manifest.open(str(examples.write_manifest(tmp_path / "data", COUNT)))
    facts, store = sources.facts(config.model), Store(str(tmp_path / "out"))
    waved = waves.read(store, manifest, config, facts)
    found = plan.make(manifest, config, facts, StoredResults(), waves=waved)
    console = Console(file=io.StringIO(), width=200)
    return Job(store, manifest, config, facts, found, console, waves=waved)


def learned(job: Job, count: int = FIRST, noise: float = 0.0, start: float = 0.0) -> None:
    """Finishes `count` concepts of the first part: words that follow from their features.

    noise: share of a word that doesn't. start: how much of the word learning began with, less being further away.
    """
    made = catalogue.examples(count, scorer=job.config.scoring.model, model=job.facts.identity)
    random = np.random.default_rng(1)
    for concept_id, one in zip(sorted(job.plan.todo)[::-1], made, strict=False):
        word = {
            name: ((1 - noise) * part + noise * 20 * random.normal(size=part.shape)).astype(np.float32)
            for name, part in one.word.items()
        }
        initial = {name: start * part for name, part in word.items()}
        example = Example(concept_id, word, one.features, initial)
        catalogue.finish(job.store, example, **job.plan.todo[concept_id]._asdict())


def said(job: Job) -> str:
    assert isinstance(job.console.file, io.StringIO)
    return job.console.file.getvalue()


def record(job: Job) -> WavesRecord:
    found = job.store.record(WavesRecord, WAVES)
    assert found is not None
    return found


def test_the_rest_starts_from_the_first_words(job: Job) -> None:
    learned(job)
    rest = second_part(job, Lock(job.store, print))
    assert set(rest.plan.todo) == job.plan.later
    assert rest.waves is not None
    assert rest.waves.start is not None
    name = record(job).predictor
    assert name == rest.waves.start.name
    data = job.store.read(name)
    assert data is not None
    assert Predictor.from_bytes(data).maps[1, "clip_l"].words == FIRST
    assert f"second wave: 4 concepts start from {job.store.shown}/{name}" in said(job)
    both = job.plan.then(rest.plan)
    assert set(both.todo) == {f"c{index}" for index in range(COUNT)}
    assert not both.later
    again = second_part(job, Lock(job.store, print))
    assert again.waves == rest.waves, "fitted again, it is the same"


def test_a_failed_concept_is_left_to_the_next_run(job: Job) -> None:
    learned(job, FIRST - 1)
    left = next(name for name in job.plan.todo if job.store.result(name) is None)
    examples.fail(job.store, left)
    rest = second_part(job, Lock(job.store, print))
    assert set(rest.plan.todo) == job.plan.later
    assert record(job).words == FIRST - 1
    waved = waves.read(job.store, job.manifest, job.config, job.facts)
    following = plan.make(job.manifest, job.config, job.facts, StoredResults.read(job.store), waves=waved)
    assert set(following.todo) == {left, *rest.plan.todo}
    assert not following.later
    assert {name: following.todo[name] for name in rest.plan.todo} == rest.plan.todo


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"count": 9}, "a predictor needs at least 10 words"),
        ({"noise": 1.0}, "no nearer to the learned ones than the mean of these"),
        (
            {"noise": 0.1, "start": 0.99},
            "no nearer to the learned ones than the words that learning began from",
        ),
    ],
)
def test_waves_that_are_left_out(job: Job, words: dict[str, float], why: str) -> None:
    learned(job, **words)  # type: ignore[arg-type]
    rest = second_part(job, Lock(job.store, print))
    plain = plan.make(job.manifest, job.config, job.facts, StoredResults()).todo
    assert rest.plan.todo == {name: plain[name] for name in sorted(job.plan.later, key=list(plain).index)}
    assert why in record(job).why
    assert record(job).predictor == ""
    (line,) = said(job).splitlines()
    assert line.startswith("waves are left out: ")
    assert why in line
    assert not [name for name in job.store.names("") if name.startswith("predictor-")]


def test_most_of_the_first_part_must_have_been_learned(job: Job) -> None:
    """Else what broke would decide for good what all others start from."""
    learned(job, FIRST // 2 - 1)
    with pytest.raises(UserError, match=r"only 5 of the first 12 concepts were learned"):
        second_part(job, Lock(job.store, print))
    assert job.store.read(WAVES) is None
    learned(job, FIRST // 2)
    second_part(job, Lock(job.store, print))
    assert record(job).words == FIRST // 2


@pytest.fixture
def between(job: Job, tmp_path: Path) -> Job:
    """The job when its first part is learned."""
    learned(job)
    config = job.config.override(["tracking.enabled=false"])
    stored = StoredResults.read(job.store)
    rest = plan.make(job.manifest, config, job.facts, stored, waves=job.waves)
    job_record.begin(job.store, job.manifest, config, rest)
    return replace(job, config=config, plan=rest)


def test_a_cluster_that_is_gone_between_the_waves(between: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The views have what the first one learned."""

    def connect(*_: object) -> bool:
        raise UserError("the Ray at 'h:6379' can't be used: no route")

    monkeypatch.setattr(connection, "connect", connect)
    assert run._run(between, Lock(between.store, print), {}) == 1
    assert "the job could not go on: the Ray at 'h:6379' can't be used: no route" in said(between)
    assert pq.read_table(between.store.path("results.parquet")).num_rows == FIRST
    kept = between.store.job()
    assert kept is not None
    assert kept.exit_code == 1


def test_a_cluster_that_cant_be_joined(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has ended, and says so."""

    def connect(*_: object) -> bool:
        raise UserError("the Ray at 'h:6379' can't be used: no route")

    monkeypatch.setattr(connection, "connect", connect)
    job = replace(job, config=job.config.override(["tracking.enabled=false"]))
    job_record.begin(job.store, job.manifest, job.config, job.plan)
    with pytest.raises(UserError, match="no route"):
        run._run(job, Lock(job.store, print), {})
    kept = job.store.job()
    assert kept is not None
    assert kept.exit_code == 2


def test_an_output_that_another_job_has_by_now(between: Job) -> None:
    """Nothing in it is changed."""
    lock = Lock(between.store, print)
    lock.lost = "another job, on far, has taken over this output"
    before = between.store.read("job.json")
    with pytest.raises(UserError, match="on far, has taken over"):
        second_part(between, lock)
    assert run._run(between, lock, {}) == 1
    assert lock.lost in said(between)
    assert between.store.read("job.json") == before
    assert {WAVES, "results.parquet", "report.html"}.isdisjoint(between.store.names(""))


def test_fewer_concepts_than_a_first_part(job: Job) -> None:
    more = job.config.override([f"service.waves.first={COUNT + 1}"])
    waved = waves.read(job.store, job.manifest, more, job.facts)
    found = plan.make(job.manifest, more, job.facts, StoredResults(), waves=waved)
    print_start(replace(job, config=more, plan=found, waves=waved))
    assert "waves are left out: no more than 16 concepts could be in the first part" in said(job)


def test_the_start_says_where_fewer_steps_would_do(job: Job) -> None:
    print_start(job)
    assert "then, from words that a predictor makes of these: 4 concepts" in said(job)
    assert "with as many steps as these; fewer will do: training.warm_start.steps" in said(job)
    fewer = job.config.override(["training.warm_start.steps=2"])
    job = replace(job, config=fewer, console=Console(file=io.StringIO(), width=200))
    print_start(job)
    assert "fewer will do" not in said(job)


def test_status_tells_the_wave(job: Job, tiny_sd: Path, tiny_clip: Path, tmp_path: Path) -> None:
    config = examples.config(tiny_sd, tiny_clip, f"service.waves.first={FIRST}")
    examples.begin(job.store, config, tmp_path, COUNT)
    assert (
        status.read(job.store.uri).waves
        == "first wave: a predictor is fitted once the first 12 concepts are over"
    )
    learned(job)
    second_part(job, Lock(job.store, print))
    assert "second wave: 12 words predict the others, by " in status.read(job.store.uri).waves
    assert record(job).predictor in status.read(job.store.uri).waves
    waves.forget(job.store)
    assert status.read(job.store.uri).waves.startswith("first wave")


@pytest.fixture
def running(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Iterator[RunningJob]:
    """Words of concepts with the same pictures and seed are equal, so that features predict them exactly."""
    path = examples.write_manifest(
        tmp_path / "data",
        FEW + REST,
        {
            f"c{index}": {"images": [f"c{index % 3}-{number}.png" for number in range(3)]}
            for index in range(FEW + REST)
        },
    )
    pq.write_table(pq.read_table(path).append_column("seed", pa.array([7] * (FEW + REST), pa.int64())), path)
    settings = examples.settings(
        tiny_sd,
        tiny_clip,
        f"service.waves.first={FEW}",
        "training.steps=80",
        "review.sample_at=[1.0]",
        "service.workers=1",
        "service.heartbeat_s=0.3",
        "service.lease_timeout_s=4",
        "service.checkpoint_every_s=0.1",
        "tracking.enabled=false",
    )
    job = RunningJob(tmp_path, settings)
    yield job
    job.close()


def kill(process: psutil.Popen) -> None:
    """The driver and its Ray at once, as when their machine dies."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs(family[1:])
    process.wait()


@pytest.mark.slow
def test_stopped_and_killed(running: RunningJob) -> None:
    """Stopped and killed in the first wave, killed in the second, and, once all is learned, as if killed while it
    fitted."""
    store = running.store
    process = running.start()
    process.wait_for(running.checkpoints)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, out = process.ended(60)
    assert time.monotonic() - began < 15
    assert code == 143, out
    assert "stopping: the workers write checkpoints" in out
    assert "the same command goes on where this one ended" in out
    assert running.checkpoints()
    assert store.read(WAVES) is None

    process = running.start()
    process.wait_for(running.resumed)
    kill(process)
    assert store.read(WAVES) is None
    resumed = len(running.resumed())

    process = running.start()
    process.wait_for(lambda: store.read(WAVES) and running.checkpoints())
    kill(process)
    assert len(running.resumed()) > resumed, "the first wave went on from its checkpoints"
    decided = store.record(WavesRecord, WAVES)
    assert decided is not None
    assert decided.predictor, decided.why
    assert set(running.checkpoints()).isdisjoint(decided.first)
    first = {name: store.result(name) for name in running.done() if name in decided.first}
    assert set(first) == set(decided.first)

    code, out = running.run()
    assert code == 0, out
    assert re.search(r"\d of \d concepts? learned", out)
    assert {name: store.result(name) for name in first} == first
    data = store.read(decided.predictor)
    assert data is not None
    later = set(running.done()) - set(first)
    assert len(later) == REST
    undisturbed = jobs.words(running.folder, running.settings, later, PredictedStart(data))
    undisturbed |= jobs.words(running.folder, running.settings, decided.first[:1])
    for name, word in undisturbed.items():
        result = store.result(name)
        assert result is not None
        assert result.options.get("init_from") == (decided.predictor if name in later else None)
        np.testing.assert_allclose(running.vectors(name), word, atol=1e-5)

    results = list(store.results())
    store.remove(WAVES)
    store.remove(decided.predictor)
    code, out = running.run()
    assert code == 0, out
    assert "Ray" not in out, "no word is learned again"
    assert store.record(WavesRecord, WAVES) == decided
    assert store.read(decided.predictor) == data
    assert list(store.results()) == results
    code, out = running.run()
    assert f"nothing to do: all {FEW + REST} concepts are done" in out
