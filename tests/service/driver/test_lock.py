"""One job per output: the second is refused, a dead one's lock is taken over."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.waiting import wait_for
from textinv_ray.service.driver.lock import NAME, Lock, Pace
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

DIES_WITH_IT = """
import os, sys
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.store.store import Store

Lock(Store(sys.argv[1]), print).__enter__()
os._exit(9)
"""


PACE = Pace(beat_s=0.05, stale_s=0.5, poll_s=0.02)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def lock_of(store: Store, say: Callable[[str], None]) -> Lock:
    return Lock(store, say, PACE)


def change(store: Store, **changes: Any) -> dict[str, Any]:
    found = {**json.loads(store.read(NAME) or b"{}"), **changes}
    store.write(NAME, json.dumps(found).encode())
    return found


def fail(text: str) -> None:
    raise AssertionError(text)


def test_a_second_job_is_refused(store: Store) -> None:
    with lock_of(store, fail):
        with pytest.raises(UserError, match=r"another job is learning into .*out \(on .*another --output"):
            lock_of(store, fail).__enter__()
        assert store.read(NAME)
    assert store.read(NAME) is None
    with lock_of(store, fail):
        pass


def ignores_the_mode(self: MemoryFileSystem, path: str, data: bytes, **_: Any) -> None:
    self.open(path, "wb", data=data)


def knows_no_mode(self: MemoryFileSystem, path: str, data: bytes) -> None:
    self.open(path, "wb", data=data)


def refuses_conditions(self: MemoryFileSystem, path: str, data: bytes, mode: str = "overwrite") -> None:
    if mode == "create":
        raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
    self.open(path, "wb", data=data)


@pytest.mark.parametrize("pipe_file", [ignores_the_mode, knows_no_mode, refuses_conditions])
def test_a_live_job_keeps_its_lock_where_files_are_not_created_exclusively(
    pipe_file: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on S3 from other makers, or on Azure."""
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    store = Store(f"memory://{pipe_file.__name__}")
    with lock_of(store, fail):
        holder = json.loads(store.read(NAME) or b"{}")["owner"]
        with pytest.raises(UserError, match="another job is learning into"):
            lock_of(store, fail).__enter__()
        assert json.loads(store.read(NAME) or b"{}")["owner"] == holder
    assert store.read(NAME) is None


def test_a_job_that_died_here_is_no_obstacle(store: Store) -> None:
    done = subprocess.run([sys.executable, "-c", DIES_WITH_IT, store.uri], timeout=60)
    assert done.returncode == 9
    assert store.read(NAME) is not None
    began = time.monotonic()
    with lock_of(store, fail):
        assert time.monotonic() - began < 0.5, "no need to wait and see"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_live_job_keeps_its_lock_when_the_clock_is_set(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that psutil gives for the start of a process moves with it."""
    with lock_of(store, fail):
        before = psutil.Process().create_time()
        monkeypatch.setattr(psutil.Process, "create_time", lambda _: before + 3600)
        with pytest.raises(UserError, match="another job is learning into"):
            lock_of(store, fail).__enter__()


def test_a_job_elsewhere_that_lives_is_recognised_by_its_beats(store: Store) -> None:
    with lock_of(store, fail):
        pass
    said: list[str] = []
    store.write(NAME, b"{}")
    beats = threading.Event()
    other = {"owner": "x", "host": "far", "place": "elsewhere", "pid": 1, "started": 0.0, "beat": 0}

    def beat() -> None:
        count = 0
        while not beats.wait(0.05):
            count += 1
            change(store, **{**other, "beat": count})

    change(store, **other)
    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match="on far"):
        lock_of(store, said.append).__enter__()
    beats.set()
    thread.join()
    assert len(said) == 1
    assert "locked by a job on far" in said[0]


def test_a_job_elsewhere_that_died_is_taken_over(store: Store) -> None:
    change(store, owner="x", host="far", place="elsewhere", pid=1, started=0.0, beat=7)
    said: list[str] = []
    with lock_of(store, said.append):
        assert json.loads(store.read(NAME) or b"{}")["owner"] != "x"
    assert said[-1] == "it doesn't: this job takes over"


HOLDER = b'{"owner": "x", "host": "h", "place": "p", "started": 1.0, "beat": 1, "pid": '


@pytest.mark.parametrize(
    "damaged",
    [
        *(b"", b"{", b"[]", b'{"owner": "x"}', b"[" * 9999),
        *(HOLDER + pid + b"}" for pid in (b'"7"', b"-1", b"0", b"1e999", b"9" * 5000, b"99999999999")),
    ],
)
def test_a_damaged_lock_is_nobody_s(store: Store, damaged: bytes) -> None:
    store.write(NAME, damaged)
    with lock_of(store, fail):
        pass


@pytest.mark.parametrize("uri", ["local", "memory://locks/out"])
def test_of_several_that_start_at_once_one_goes_on(tmp_path: Path, uri: str) -> None:
    """However their steps interleave: the lock is created exclusively."""
    store = Store(str(tmp_path / "out") if uri == "local" else uri)
    count = 8
    for _ in range(10):
        together = threading.Barrier(count)
        locks = [lock_of(store, fail) for _ in range(count)]

        def enter(lock: Lock, together: threading.Barrier = together) -> bool:
            together.wait()
            try:
                lock.__enter__()
            except UserError:
                return False
            return True

        with ThreadPoolExecutor(count) as pool:
            entered = list(pool.map(enter, locks))
        assert sum(entered) == 1
        locks[entered.index(True)].__exit__(None, None, None)
        assert store.read(NAME) is None


def test_who_was_taken_for_dead_learns_of_it(store: Store) -> None:
    """A job that was stopped for long, and goes on when another one has its output."""
    with lock_of(store, fail) as lock:
        change(store, owner="x", host="far")
        assert "another job, on far" in wait_for(lambda: lock.lost)
    assert store.read(NAME) is not None, "it is the other's now"
