"""One job at a time per output: lock.json says which job holds it, and a counter in it that the job lives.

A job that died leaves its lock behind. On the machine it ran on, that is known at once: its process is gone. Elsewhere
the lock is watched for a while: when the counter stands still, the next job takes the output over. Clocks are not
compared.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.holder import NAME, Holder
from textinv_ray.service.store.records import parse
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

logger = logging.getLogger(__name__)

_STARTTIME = 19  # in /proc/PID/stat, of the fields after the program's name: proc(5) calls it field 22


class Pace(NamedTuple):
    """How often a lock is renewed and watched, in seconds."""

    beat_s: float = 5.0
    """Between two beats."""
    stale_s: float = 30.0
    """A lock without a beat for this long is a dead job's."""
    poll_s: float = 0.5
    """Between two reads of another job's lock."""


class Lock:
    """Held while entered. Raises UserError when another job holds the output.

    A folder that only the lock was put in is removed with it.
    """

    def __init__(self, store: Store, say: Callable[[str], None], pace: Pace | None = None) -> None:
        """`say` is called when the user must wait until it is known whether another job lives."""
        self._store = store
        self._impatient = Store(store.uri, patience_s=0)  # so that the job's end needn't wait for a beat
        self._say = say
        self._pace = pace or Pace()
        self._me = _this_process()
        self._ended = threading.Event()
        self._folders = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self.lost = ""
        """Why this job must stop: another one has taken the output over. Empty while it needn't."""
        self.waiting_for = ""
        """What keeps the first worker from starting, for `textinv status`; empty: nothing that is known."""

    def __enter__(self) -> Lock:
        self._folders.enter_context(self._store.without_empty_folders())
        while True:
            # Looked for first: where files can't be created exclusively, `create` would replace a live job's lock.
            data = self._store.read(NAME)
            if data is None:
                if self._store.create(NAME, self._me.to_bytes()):
                    break
                continue  # another job was faster, or our own writing was tried again
            found = _parsed(data)
            if found and found.owner == self._me.owner:
                break
            if found and not self._is_dead(found):
                continue
            if self._store.read(NAME) == data:  # nobody else has taken it over meanwhile
                self._store.remove(NAME)
        # Of jobs that start at once on a file system that can't, the one that wrote last goes on.
        found = self._read(self._store)
        if found and found.owner != self._me.owner:
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
        self._folders.close()

    def _is_dead(self, holder: Holder) -> bool:
        """Whether the holder is dead; False when it gives the lock back meanwhile. Raises UserError when it lives."""
        if holder.place == _place():
            if _lives_here(holder):
                raise UserError(_refusal(self._store, holder))
            return True
        self._say(
            f"{self._store.shown} is locked by a job on {holder.host}: waiting to see whether it lives ..."
        )
        end = time.monotonic() + self._pace.stale_s
        while time.monotonic() < end:
            time.sleep(self._pace.poll_s)
            found = self._read(self._store)
            if found is None:
                return False
            if found != holder:
                raise UserError(_refusal(self._store, found))
        self._say("it doesn't: this job takes over")
        return True

    def _keep(self) -> None:
        while not self._ended.wait(self._pace.beat_s):
            try:
                found = self._read(self._impatient)
                if found and found.owner != self._me.owner:
                    self.lost = f"another job, on {found.host}, has taken over this output"
                    return
                news = {"beat": self._me.beat + 1, "waiting_for": self.waiting_for}
                self._me = self._me.model_copy(update=news)
                self._impatient.write(NAME, self._me.to_bytes())
            except StoreError as error:
                logger.warning("the lock can't be renewed: %s", error)

    @staticmethod
    def _read(store: Store) -> Holder | None:
        data = store.read(NAME)
        return None if data is None else _parsed(data)


def _parsed(data: bytes) -> Holder | None:
    """The holder that a lock.json names; none when it is damaged."""
    try:
        return parse(Holder, data)
    except ValueError:
        return None


def _this_process() -> Holder:
    process = psutil.Process()
    return Holder(
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        place=_place(),
        pid=process.pid,
        started=_started(process),
        beat=0,
    )


def _place() -> str:
    """Names the set of processes that a pid is one of: this boot of this kernel, and the container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if boot.exists() and namespace.exists():
        return f"{boot.read_text().strip()} {os.stat(namespace).st_ino}"
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _started(process: psutil.Process) -> float:
    """When a process started: on Linux in clock ticks since the boot, as the wall clock may be set anew.

    Raises psutil.Error.
    """
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except OSError:
        return process.create_time()
    return float(stat.rpartition(")")[2].split()[_STARTTIME])


def _lives_here(holder: Holder) -> bool:
    """Whether the holder's process, which is of this machine, still runs."""
    try:
        process = psutil.Process(holder.pid)
        return _started(process) == holder.started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # it is there, and whose it is isn't known
        return True
    except psutil.Error:
        return False


def _refusal(store: Store, holder: Holder) -> str:
    return (
        f"another job is learning into {store.shown} (on {holder.host}, process {holder.pid}): "
        "wait for it or stop it, or give this one another --output"
    )
