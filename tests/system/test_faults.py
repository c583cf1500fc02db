"""The fault matrix: whatever dies, hangs or refuses, every concept ends once, with the words it would have had.

On a real Ray of a head and two nodes with a worker each, and with the bundled model. `service.release_after_s`
and the like are at their defaults unless a test says so.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest

from tests.support import examples, jobs
from tests.support.commands import Command
from tests.support.jobs import Job
from tests.support.nodes import Nodes, processes
from tests.support.s3 import BUCKET, S3Server

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]
COUNT = 5


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes(workers=2)
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Of an undisturbed run."""
    folder = tmp_path_factory.mktemp("words")
    examples.write_manifest(folder / "data", COUNT)
    return jobs.words(folder, jobs.quick())


@pytest.fixture
def make_job(nodes: Nodes, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Makes a job with settings of its own, on all the nodes."""
    made: list[Job] = []

    def make(*overrides: str, output: str = "out", address: str = "") -> Job:
        nodes.complete()
        made.append(jobs.make(tmp_path, address or nodes.address, COUNT, *overrides, output=output))
        return made[-1]

    yield make
    for job in made:
        job.close()


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    return make_job()


def begun(job: Job, process: Command) -> list[psutil.Process]:
    """The workers, once they all learn and some concept has a checkpoint."""
    process.wait_for(lambda: job.checkpoints() and len(processes("RayTrainWorker")) == 2)
    return processes("RayTrainWorker")


def test_workers_killed(job: Job, words: dict[str, np.ndarray]) -> None:
    process = job.start()
    for worker in begun(job, process):
        worker.kill()
    code, out = process.ended()
    assert code == 0, out
    assert job.resumed(), "something went on from a checkpoint"
    job.assert_all_done(words)


def test_a_worker_hangs_and_comes_back_late(job: Job, words: dict[str, np.ndarray]) -> None:
    """SIGSTOP: its leases expire, others learn its concepts; when it goes on, it does no harm."""
    process = job.start()
    begun(job, process)
    # One whose concept has a checkpoint: else there is nothing for the other to go on from.
    hung = psutil.Process(process.wait_for(job.holder_of_a_checkpoint))
    hung.suspend()
    try:
        process.wait_for(lambda: "attempt 2" in job.log())
    finally:
        hung.resume()
    code, out = process.ended()
    assert code == 0, out
    assert job.resumed()
    job.assert_all_done(words)


def test_a_worker_that_raises(job: Job, words: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Once, at step 10 of its concepts: the others' worker goes on, this one is started again."""
    marker = tmp_path / "raised"
    job.inject(
        f"""
real = Pack.step
def step(self):
    if self.tasks[0].step >= 10:
        try:
            os.close(os.open({str(marker)!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return real(self)
Pack.step = step
"""
    )
    code, out = job.run()
    assert code == 0, out
    assert marker.exists()
    assert "an illegal memory access" in job.log()
    job.assert_all_done(words)


def test_out_of_memory(job: Job, words: dict[str, np.ndarray]) -> None:
    """Passes of two concepts don't fit from step 5 on: they go on one by one, and nobody's work is lost."""
    job.inject(
        """
import torch
real = Pack.losses_and_gradient
def compute(self):
    if len(self.tasks) > 1 and self.tasks[0].step >= 5:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return real(self)
Pack.losses_and_gradient = compute
"""
    )
    code, out = job.run()
    assert code == 0, out
    assert "out of memory: 1 concepts share a pass" in job.log()
    assert job.resumed()
    job.assert_all_done(words)


def test_a_node_dies_and_never_returns(nodes: Nodes, job: Job, words: dict[str, np.ndarray]) -> None:
    process = job.start()
    begun(job, process)
    nodes.kill()
    code, out = process.ended()
    assert code == 0, out
    job.assert_all_done(words)


def test_all_nodes_die_and_one_comes(nodes: Nodes, job: Job, words: dict[str, np.ndarray]) -> None:
    process = job.start()
    begun(job, process)
    nodes.kill()
    nodes.kill()
    nodes.add()
    code, out = process.ended()
    assert code == 0, out
    assert job.resumed()
    job.assert_all_done(words)


def test_a_node_is_about_to_go(nodes: Nodes, make_job: Callable[..., Job]) -> None:
    """A notice of preemption: its worker writes checkpoints and leaves in time, nothing is done twice."""
    job = make_job("training.steps=300")
    process = job.start()
    begun(job, process)
    nodes.drain(0)
    process.wait_for(lambda: not nodes.workers_of(0))
    nodes.kill(0)
    code, out = process.ended()
    assert code == 0, out
    assert len(job.done()) == COUNT
    assert job.resumed()
    assert "had to be taken again" not in job.log()


@pytest.mark.parametrize("name", ["Scheduler", "Fleet", "TrainController"])
def test_a_process_of_the_service_is_killed(job: Job, words: dict[str, np.ndarray], name: str) -> None:
    process = job.start()
    begun(job, process)
    for victim in processes(name):
        victim.kill()
    code, out = process.ended()
    assert code == 0, out
    job.assert_all_done(words)
    if name == "Scheduler":
        assert "this scheduler was restarted" in job.log()


def test_the_driver_is_killed_and_run_again(job: Job, words: dict[str, np.ndarray]) -> None:
    process = job.start()
    process.wait_for(lambda: job.done() and job.checkpoints())
    process.kill()
    process.wait(60)
    before, marks = job.done(), len(job.begun())
    code, out = job.run()
    assert code == 0, out
    assert f"done already: {len(before)}" in out
    assert any(step for _, step in job.begun()[marks:]), "something went on from a checkpoint"
    assert not {name for name, _ in job.begun()[marks:]} & before.keys(), "nothing was done twice"
    assert before.items() <= job.done().items()
    job.assert_all_done(words)


def test_two_jobs_and_a_stop(job: Job, words: dict[str, np.ndarray]) -> None:
    """The second is refused; SIGTERM stops the first in time; the same command goes on."""
    process = job.start()
    begun(job, process)
    code, out = job.run()
    assert code == 2
    assert "another job is learning into" in out
    assert "Traceback" not in out
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    code, out = process.ended()
    assert time.monotonic() - signalled < 20
    assert code == 143, out
    assert "the same command goes on where this one ended" in out
    code, out = job.run()
    assert code == 0, out
    assert job.resumed()
    job.assert_all_done(words)


def test_damaged_files_and_a_changed_manifest(job: Job, words: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Whatever can't be trusted is learned anew; rows that are new or changed are learned, and no others."""
    code, out = job.run()
    assert code == 0, out
    before, marks = job.done(), len(job.begun())
    store = job.store
    store.write_concept("c0", "result.json", b'{"concept_id": "c0", "sta')
    foreign = store.read_concept("c2", "state.safetensors") or b""
    for name, data in (("c1", foreign), ("c3", b"garbage")):
        store.remove(f"concepts/{name}/result.json")
        store.remove(f"concepts/{name}/state.safetensors")
        store.write_concept(name, "checkpoint.safetensors", data)
    examples.write_manifest(tmp_path / "data", COUNT + 1, {"c4": {"initializer_token": "dog"}})
    changed = jobs.words(tmp_path, job.settings, only=("c4", "c5"))
    code, out = job.run()
    assert code == 0, out
    assert dict(job.begun()[marks:]) == {"c0": 40, "c1": 0, "c3": 0, "c4": 0, "c5": 0}
    assert job.done()["c2"] == before["c2"]
    job.assert_all_done({**words, **changed})
    assert "c1/checkpoint.safetensors is not continued" in job.log()
    assert "c3/checkpoint.safetensors is not continued" in job.log()
    assert "concepts/c0/result.json is not readable" in out

    examples.write_manifest(tmp_path / "data", 2)
    marks = len(job.begun())
    code, out = job.run()
    assert code == 0, out
    assert job.begun()[marks:] == [], "the pictures were written anew, and are the same"
    assert sorted(job.done()) == [f"c{index}" for index in range(COUNT + 1)], "removed rows' results stay"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    server = S3Server()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield server
    server.stop()


def test_the_store_is_away_throttles_and_refuses(
    s3: S3Server, make_job: Callable[..., Job], words: dict[str, np.ndarray]
) -> None:
    """Away for 20 s: it is waited for. Access denied: a clear stop. Then the same command ends it."""
    # On a Ray of its own: a running one's workers wouldn't have this server's address in their environment.
    job = make_job("service.cpus_per_worker=1", output=f"s3://{BUCKET}/out", address="local")
    process = job.start()
    process.wait_for(job.checkpoints)
    s3.stop()
    back = time.monotonic() + 20
    process.wait_for(lambda: time.monotonic() > back)
    s3.start()
    s3.fail("slow down", times=50)
    process.wait_for(lambda: s3.times == 0)
    process.wait_for(job.done)
    assert not job.store.names("failed")
    s3.fail("denied", only=("PUT",))
    code, out = process.ended()
    assert code == 1, out
    assert "the job could not go on: the output s3://" in out
    assert "access denied" in out
    assert "Traceback" not in out
    s3.heal()
    before = job.done()
    code, out = job.run()
    assert code == 0, out
    assert f"done already: {len(before)}" in out
    job.assert_all_done(words)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_disk_is_full(
    small_disk: Path, make_job: Callable[..., Job], words: dict[str, np.ndarray]
) -> None:
    job = make_job(output="disk/out")
    process = job.start()
    begun(job, process)
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, capture_output=True)
    assert shutil.disk_usage(small_disk).free == 0
    code, out = process.ended()
    assert code == 1, out
    assert "the job could not go on: the output" in out
    assert "no space left" in out
    assert "Traceback" not in out
    filler.unlink()
    code, out = job.run()
    assert code == 0, out
    job.assert_all_done(words)


def test_lock_json_says_who(job: Job) -> None:
    process = job.start()
    found = process.wait_for(lambda: job.store.read("lock.json") or b"")
    assert json.loads(found)["pid"] == process.pid
    process.send_signal(signal.SIGTERM)
    process.ended()
    assert job.store.read("lock.json") is None
