"""A Ray of several nodes on this machine, and its processes."""

from __future__ import annotations

import time
from typing import Any

import psutil

from tests.support.network import free_ports


class Nodes:
    """A Ray of a head, for the scheduler and the like, and of nodes with room for one worker each."""

    def __init__(self, workers: int) -> None:
        from ray.cluster_utils import Cluster

        self._options = {"object_store_memory": 100 * 2**20, "dashboard_agent_listen_port": 0}
        self._cluster = Cluster(
            initialize_head=True,
            # With the dashboard, as clusters have it: Train asks it which of its controllers live.
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": True,
                "dashboard_port": free_ports(1)[0],
                **self._options,
            },
        )
        self._wanted = workers
        self.workers: list[Any] = []
        self.complete()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def complete(self) -> None:
        """Adds nodes that were killed. On the main thread only."""
        while len(self.workers) < self._wanted:
            self.add()

    def add(self) -> None:
        self.workers.append(self._cluster.add_node(num_cpus=2, **self._options))

    def kill(self, index: int = 0) -> None:
        """Its raylet dies, and all its processes with it."""
        self._cluster.remove_node(self.workers.pop(index), allow_graceful=False)

    def drain(self, index: int = 0) -> None:
        """Tells it, as a cloud does some time before it takes a spot machine away."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int(1000 * (time.time() + 120))
        client = GcsClient(address=self.address)
        accepted, why = client.drain_node(self.workers[index].node_id, reason, "spot", deadline_ms)
        assert accepted, why

    def workers_of(self, index: int) -> list[psutil.Process]:
        """The processes on a node that learn."""
        raylet = self.workers[index].all_processes["raylet"][0].process.pid
        return [worker for worker in processes("RayTrainWorker") if worker.ppid() == raylet]

    def close(self) -> None:
        self._cluster.shutdown()


def processes(name: str, under: int | None = None) -> list[psutil.Process]:
    """Ray's processes of one kind, such as RayTrainWorker, Scheduler, Fleet or TrainController.

    Those below the process with the id `under`; by default, below this one.
    """
    found = []
    for child in psutil.Process(under).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
            if title.startswith("ray::") and name in title and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.Error:
            continue
    return found
