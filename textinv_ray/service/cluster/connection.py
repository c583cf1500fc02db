"""The Ray that a job runs on: one that is running already, or a local one that ends with the job."""

from __future__ import annotations

import logging
import math
import os
import socket
from pathlib import Path

import ray
from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster.ray_internals import last_started_address
from textinv_ray.util.errors import UserError
from textinv_ray.util.submitted_job import is_submitted_job

logger = logging.getLogger(__name__)


def connect(config: JobConfig, console: Console) -> bool:
    """Joins the cluster of RAY_ADDRESS or one that `ray start` started on this machine; else starts a local Ray.

    Returns whether it joined one. Prints which it is. Raises UserError when Ray can't be joined or started.
    """
    address = os.environ.get("RAY_ADDRESS") or started_here()
    if address and address != "local":
        _init(address)
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        console.print(f"Ray: the running cluster, {nodes} node{'s' if nodes > 1 else ''}")
        return True
    service = config.service
    workers = 1 if service.workers == "auto" else service.workers
    _init("local", num_cpus=max(os.cpu_count() or 1, math.ceil(workers * service.cpus_per_worker)))
    console.print("Ray: started on this machine for this job")
    return False


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


def _init(address: str, num_cpus: int | None = None) -> None:
    """ray.init, tried twice: on a busy machine Ray's own processes may take longer than it waits for them.

    `num_cpus`: of a local Ray.
    """
    local = {} if num_cpus is None else {"num_cpus": num_cpus, "include_dashboard": False}
    for attempt in (1, 2):
        try:
            ray.init(address=address, configure_logging=False, runtime_env=_import_path(), **local)
            return
        except Exception as error:
            logger.exception("ray.init failed")
            ray.shutdown()
            if attempt == 2:
                why = str(error).strip().split("\n")[0]
                raise UserError(f"the Ray at {address!r} can't be used: {why}") from error


def _import_path() -> dict[str, dict[str, str]] | None:
    """The runtime environment with which workers on this machine import this package where it isn't installed.

    None in a submitted job, whose workers have its working directory.
    """
    if is_submitted_job():
        return None
    paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}
