"""One job at a time per output: lock.json says whose it is, and a counter in it that its job lives.

A job that died leaves its lock behind. On the machine it ran on, that shows at once: its process is gone.
Elsewhere the lock is watched for a while: without a beat it is taken over. Clocks are not compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from textinv_ray.service.store.store import Store, StoreError
from textinv_ray.util.errors import UserError

logger = logging.getLogger(__name__)

NAME = "lock.json"
BEAT_S = 5.0
STALE_S = 30.0
"""A lock without a beat for this long is a dead job's."""
_LOOK_S = 0.5


class Lock:
    """Held while entered. Raises UserError when another job holds the output."""

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        """`say` is told when the user must wait to find out whether another job lives."""
        self._store = store
        self._impatient = Store(store.uri, patience_s=0)  # so that the job's end needn't wait for a beat
        self._say = say
        self._me: dict[str, Any] = {"owner": uuid.uuid4().hex, **_this_process(), "beat": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self.lost = ""
        """Why this job must stop: another one has taken the output over. Empty while it needn't."""

    def __enter__(self) -> Lock:
        self._wait_for_a_dead_one()
        self._write(self._store)
        found = self._read(self._store)  # of two that start at once, the one that wrote last goes on
        if found and found["owner"] != self._me["owner"]:
            raise UserError(_refusal(self._store, found))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(StoreError):
                self._impatient.remove(NAME)

    def _wait_for_a_dead_one(self) -> None:
        """Returns when nobody holds the output any more. Raises UserError once the holder gives a beat."""
        first = self._read(self._store)
        if first is None or _is_dead(first):
            return
        if _lives_here(first):
            raise UserError(_refusal(self._store, first))
        self._say(f"{self._store.shown} is locked by a job on {first['host']}: seeing whether it lives ...")
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(_LOOK_S)
            found = self._read(self._store)
            if found is None:
                return
            if found != first:
                raise UserError(_refusal(self._store, found))
        self._say("it doesn't: this job takes over")

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                found = self._read(self._impatient)
                if found and found["owner"] != self._me["owner"]:
                    self.lost = f"another job, on {found['host']}, has taken over this output"
                    return
                self._me["beat"] += 1
                self._write(self._impatient)
            except StoreError as error:
                logger.warning("the lock: %s", error)

    def _read(self, store: Store) -> dict[str, Any] | None:
        try:
            found = json.loads(store.read(NAME) or b"null")
        except ValueError:
            return None
        is_ours = isinstance(found, dict) and {"owner", "host", "place", "pid", "started"} <= found.keys()
        return found if is_ours else None

    def _write(self, store: Store) -> None:
        store.write(NAME, json.dumps(self._me, indent=1).encode())


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "place": _place(),
        "pid": process.pid,
        "started": process.create_time(),
    }


def _place() -> str:
    """Names the set of processes that a pid is one of: this boot of this kernel, and the container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if boot.exists() and namespace.exists():
        return f"{boot.read_text().strip()} {os.stat(namespace).st_ino}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _lives_here(lock: dict[str, Any]) -> bool:
    """Whether the lock's process is one of this machine's that still runs."""
    if lock["place"] != _place():
        return False
    try:
        process = psutil.Process(lock["pid"])
        return process.create_time() == lock["started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_dead(lock: dict[str, Any]) -> bool:
    return lock["place"] == _place() and not _lives_here(lock)


def _refusal(store: Store, lock: dict[str, Any]) -> str:
    return (
        f"another job is learning into {store.shown} (on {lock['host']}, process {lock['pid']}): "
        "wait for it or stop it, or give this one another --output"
    )
