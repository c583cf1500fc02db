"""The Ray that a job runs on: a cluster that was asked for, or a local one that ends with the job."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError
from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster.ray_internals import (
    last_started_address,
    token_is_known,
    use_token_if_known,
)
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.submitted_job import is_submitted_job

logger = logging.getLogger(__name__)


def connect(config: JobConfig, console: Console) -> bool:
    """Joins the cluster of `service.ray`, or else of RAY_ADDRESS; without both, starts a local Ray.

    Returns whether it joined one. Prints which it is. Raises UserError when Ray can't be joined or started.
    A cluster that merely runs on this machine is never joined unasked: it may be another's.
    """
    service = config.service
    wanted = service.ray or os.environ.get("RAY_ADDRESS") or "local"
    if wanted == "auto":
        address = started_here()
        if address is None:
            raise UserError("--ray auto: no Ray that `ray start` started or joined runs on this machine")
    else:
        address = wanted
    if address != "local":
        dashboard = _init(address)
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        console.print(f"Ray: the cluster at {address}, {nodes} node{'s' if nodes > 1 else ''}{dashboard}")
        return True
    workers = 1 if service.workers == "auto" else service.workers
    _own_token()
    _init("local", num_cpus=max(os.cpu_count() or 1, math.ceil(workers * service.cpus_per_worker)))
    console.print("Ray: started on this machine for this job")
    if service.ray is None and (running := started_here()):
        console.print(f"  (a cluster of `ray start` runs at {running}: --ray auto joins it)")
    return False


def _own_token() -> None:
    """Gives a local Ray an authentication token that ends with this process.

    Otherwise Ray writes one into the home folder and takes it for clusters, too: a later `ray start --head` asks for
    it, and `ray start --address` and `ray job submit` don't send it.
    """
    uses_tokens = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    if uses_tokens and not token_is_known():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def started_here() -> str | None:
    """The address of the Ray that `ray start` started or joined on this machine, if it still answers.

    Not any Ray that runs here: the local one of another job ends with that job.
    """
    address = last_started_address()
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        logger.info("the Ray at %s, of an earlier `ray start`, doesn't answer", address)
        return None
    return address


def _init(address: str, num_cpus: int | None = None) -> str:
    """ray.init, tried twice: on a busy machine Ray's own processes may take longer than it waits for them.

    `num_cpus`: of a local Ray. Returns where the dashboard is, as the end of a line; empty without one. Raises
    SystemExit with the code that shells expect when SIGTERM comes meanwhile: Ray (2.60) makes it 15.
    """
    if num_cpus is None:
        use_token_if_known()  # unless RAY_AUTH_MODE says otherwise
    path = {} if is_submitted_job() else {"PYTHONPATH": _import_path()}  # there it is the working directory's
    if num_cpus is None:
        options: dict[str, object] = {"runtime_env": {"env_vars": path}} if path else {}
    else:
        # A local Ray's processes inherit the path. With a runtime environment, those that it starts in advance would
        # be of no use, and each actor would wait for the agent that makes the environment.
        options = {"num_cpus": num_cpus, "include_dashboard": False}
    for attempt in (1, 2):
        try:
            with _inherited(path if num_cpus is not None else {}):
                context = ray.init(address=address, configure_logging=False, **options)
            _end_on_sigterm()
            return f", dashboard http://{context.dashboard_url}" if context.dashboard_url else ""
        except SystemExit as stop:
            raise SystemExit(ExitCode.TERMINATED if stop.code == signal.SIGTERM else stop.code) from None
        except Exception as error:
            # Ray raises a ConnectionError, and the reason stands in the text of its cause
            if AuthenticationError.__name__ in "".join(traceback.format_exception(error)):
                raise UserError(
                    f"the Ray at {address!r} asks for an authentication token: copy the file ~/.ray/auth_token of "
                    "its head here, or set RAY_AUTH_TOKEN"
                ) from error
            logger.exception("ray.init failed")
            ray.shutdown()
            if attempt == 2:
                why = str(error).strip().split("\n")[0]
                raise UserError(f"the Ray at {address!r} can't be used: {why}") from error
    raise AssertionError("not reached")


def _end_on_sigterm() -> None:
    """Has SIGTERM end this process with the code that shells expect: `ray.init` makes it 15."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))


def _import_path() -> str:
    """The PYTHONPATH with which workers on this machine import this package where it isn't installed."""
    paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Within, processes that are started have these environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
