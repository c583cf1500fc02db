"""The Ray that a job runs on: one that is running, or a local one that ends with the job."""

from __future__ import annotations

import logging
import math
import os
import socket
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError

logger = logging.getLogger(__name__)


def connect(config: JobConfig, console: Console) -> bool:
    """Joins RAY_ADDRESS's cluster or one started on this machine by `ray start`; else starts a local Ray.

    Returns whether there was one to join.
    """
    address = os.environ.get("RAY_ADDRESS") or _running()
    options: dict[str, Any] = {"configure_logging": False, "runtime_env": _package_path()}
    if address and address != "local":
        _init(address=address, **options)
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        console.print(f"Ray: the running cluster, {nodes} node{'s' if nodes > 1 else ''}")
        return True
    service = config.service
    workers = 1 if service.workers == "auto" else service.workers
    cpus = max(os.cpu_count() or 1, math.ceil(workers * service.cpus_per_worker))
    _init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    console.print("Ray: started on this machine for this job")
    return False


def _init(**options: Any) -> None:
    """ray.init, tried twice: on a busy machine Ray's own processes may take longer than it waits for them."""
    for attempt in (1, 2):
        try:
            ray.init(**options)
            return
        except Exception as error:
            logger.exception("ray.init failed")
            ray.shutdown()
            if attempt == 2:
                why = str(error).strip().split("\n")[0]
                raise UserError(f"the Ray at {options['address']!r} can't be used: {why}") from error


def _package_path() -> dict[str, Any] | None:
    """Lets workers on this machine import this package where it isn't installed.

    A submitted job's workers have its working directory instead.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}


def _running() -> str | None:
    """The address of a Ray that `ray start` started or joined on this machine, if it still answers.

    Not any Ray that runs here: the local one of another job ends with that job.
    """
    from ray._private.services import find_bootstrap_address

    address = find_bootstrap_address(None)
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        logger.info("the Ray at %s, of an earlier `ray start`, doesn't answer", address)
        return None
    return str(address)
