"""One job from end to end, as users start it: real Ray, real workers in processes of their own, real MLflow.

The tests of the first class build on one another: they are one story on one output folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support import examples, jobs
from tests.support.commands import as_options
from tests.support.jobs import Job
from tests.support.nodes import processes
from textinv_ray.service.store import pictures

STEPS = 300  # seconds of work: a worker that is killed at its first checkpoint has not finished
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_clip: Path) -> Iterator[Job]:
    """Six concepts: one of c5's images doesn't exist, one of c1's has a mask, and c2's are of another shape."""
    folder = tmp_path_factory.mktemp("job")
    masked = {"masks": [None, "c1-1-mask.png", None]}
    examples.write_manifest(
        folder / "data", 6, {"c5": {"images": ["c5-0.png", "no-such-file.png"]}, "c1": masked}
    )
    mask = np.zeros((20, 24), np.uint8)
    mask[4:12, 6:18] = 255
    (folder / "data" / "c1-1-mask.png").write_bytes(pictures.png(mask))
    for number in range(3):
        wide = np.random.default_rng(number).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        (folder / "data" / f"c2-{number}.png").write_bytes(pictures.png(wide))
    settings = examples.settings(
        tiny_sd,
        tiny_clip,
        f"training.steps={STEPS}",
        "data.fit=bucket",
        "service.workers=2",
        "service.heartbeat_s=0.3",
        "service.lease_timeout_s=4",
        "service.checkpoint_every_s=0.2",
    )
    job = Job(folder, settings)
    yield job
    job.close()


def run(job: Job, *options: str) -> tuple[int, str]:
    """(exit code, what it printed)."""
    process = job.start(*options)
    code, _ = process.ended()
    assert process.err() == "", "nothing but our lines"
    return code, process.out()


def vectors(job: Job) -> dict[str, np.ndarray]:
    """By results.parquet: concept_id -> (V, D)."""
    table = pq.read_table(job.folder / "out" / "results.parquet")
    return {
        row["concept_id"]: np.asarray(row["vectors"]) for row in table.to_pylist() if row["status"] == "done"
    }


def mlflow_client(job: Job) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{job.folder}/out/mlflow.db")


def mlflow_runs(job: Job) -> dict[str, Any]:
    """By name."""
    client = mlflow_client(job)
    experiment = client.get_experiment_by_name("textinv")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


class TestStory:
    def test_two_workers_killed_one_bad_image(self, job: Job) -> None:
        """Killed workers' concepts go on from their checkpoints; a bad image fails its concept alone."""
        process = job.start()
        process.wait_for(lambda: job.checkpoints() and len(processes("RayTrainWorker", process.pid)) == 2)
        # Both: nothing tells from outside which of them holds the concept that has a checkpoint.
        for worker in processes("RayTrainWorker", process.pid):
            worker.kill()
        code, out = process.ended()
        assert process.err() == ""
        assert code == 1, out
        assert "5 of 6 concepts learned" in out
        assert "c5: image " in out
        assert "no-such-file.png: doesn't exist" in out
        assert job.store.names("failed") == ["c5.json"], "killed workers are no concept's failure"
        assert job.resumed(), "at least one concept went on from a checkpoint"
        found = vectors(job)
        assert sorted(found) == ["c0", "c1", "c2", "c3", "c4"]
        for concept_id in ("c0", "c1", "c2"):
            alone = jobs.words(job.folder, job.settings, only=[concept_id])
            np.testing.assert_allclose(found[concept_id], alone[concept_id], atol=1e-5)

    def test_mlflow_has_it(self, job: Job) -> None:
        client, runs = mlflow_client(job), mlflow_runs(job)
        assert sorted(runs) == ["c0", "c1", "c2", "c3", "c4", "c5", "out"]
        assert runs["c0"].info.status == "FINISHED"
        assert runs["c5"].info.status == "FAILED"
        losses = client.get_metric_history(runs["c0"].info.run_id, "loss")
        assert [point.step for point in losses] == list(range(2, STEPS + 1, 2)), "at most 200 of 300"
        files = {entry.path for entry in client.list_artifacts(runs["out"].info.run_id)}
        assert files >= {"results.parquet", "report.html", "results.json"}

    def test_job_json(self, job: Job) -> None:
        kept = json.loads(Path(job.store.path("job.json")).read_text())
        assert kept["configuration"]["training"]["steps"] == STEPS
        assert kept["manifest_rows"] == 6
        assert kept["versions"]["ray"]
        assert not kept["mlflow_is_behind"]

    def test_the_same_command_tries_only_what_is_missing(self, job: Job) -> None:
        """Meanwhile MLflow is away: that stops nothing."""
        before = {c: job.store.result(c) for c in ("c0", "c1", "c2", "c3", "c4")}
        (job.folder / "data" / "no-such-file.png").write_bytes(examples.png(77))
        code, out = run(job, "--set", "tracking.uri=http://127.0.0.1:9")
        assert code == 0, out
        assert f"to learn: 1 concept, {STEPS} steps; done already: 5" in out
        assert before == {c: job.store.result(c) for c in before}
        assert sorted(vectors(job)) == ["c0", "c1", "c2", "c3", "c4", "c5"]
        assert job.store.failure("c5") is None
        assert "MLflow can't be written to for now, the job goes on" in out
        assert "MLflow hasn't everything yet; the next run of this command catches up" in out

    def test_mlflow_catches_up(self, job: Job) -> None:
        """By the next run of the command, without a Ray."""
        assert mlflow_runs(job)["c5"].info.status == "FAILED"
        code, out = run(job)
        assert code == 0, out
        assert "concepts are done; results.parquet, report.html and MLflow catch up" in out
        assert "Ray:" not in out
        assert mlflow_runs(job)["c5"].info.status == "FINISHED"

    def test_then_there_is_nothing_to_do(self, job: Job) -> None:
        began = time.monotonic()
        code, out = run(job)
        assert code == 0
        assert "nothing to do: all 6 concepts are done" in out
        assert time.monotonic() - began < 15

    def test_dry_run(self, job: Job) -> None:
        code, out = run(job, "--dry-run", "--set", "training.seed=1")
        assert code == 0
        assert "the manifest is in order" in out
        assert f"to learn: 6 concepts, {6 * STEPS} steps" in out
        assert "these, 6 have a result of other settings or images, which will be replaced" in out
        assert "measured on the 6 results in the output" in out


def test_a_model_that_is_not_there(job: Job) -> None:
    process = job.start("--set", "model.path=/no/such/model")
    code, said = process.ended(60)
    assert code == 2
    assert "no/such/model" in process.err()
    assert "Traceback" not in said


def test_a_model_that_workers_cant_load_ends_the_job(job: Job) -> None:
    """Found out only by the workers: the job must end and say why, not try forever."""
    wrong = ("scoring.model=/no/such/model", "training.seed=5", "service.max_attempts=1")
    process = job.start("--only", "c0", *as_options(wrong))
    code, out = process.ended()
    assert code == 1, out
    assert "the job could not go on: no worker could start" in out
    assert "/no/such/model" in out


def test_relative_paths_of_models_begin_where_the_command_was_typed(
    job: Job, tiny_sd: Path, tiny_clip: Path
) -> None:
    shutil.copytree(tiny_sd, job.folder / "models" / "sd")
    shutil.copytree(tiny_clip, job.folder / "models" / "clip")
    relative = ("model.path=models/sd", "scoring.model=models/clip", "training.seed=6")
    code, out = job.start("--only", "c0", *as_options(relative)).ended()
    assert code == 0, out
    assert "to learn: 1 concept" in out
