"""One job on Ray's autoscaler: no worker machine at first, as many as it asks for, and none again afterwards.

Ray's own fake provider stands for the cloud: its machines are raylets on this one. Everything else is real: the
scheduler decides by what the job's trainers ask for, starts machines, and ends them when they are idle.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from tests.support import examples
from tests.support.commands import RAY, REPOSITORY, as_options
from tests.support.heads import Head
from tests.support.network import free_ports
from tests.support.waiting import wait_for

HEAD_ID = "f" * 51 + "00000"  # the fake provider's name for its head
MACHINES = 2
MEMORY = 150_000_000  # bytes of each node's object store
_LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
)
ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY),
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "TEXTINV_SET": f"service.workers={MACHINES} service.gpus_per_worker=1 service.cpus_per_worker=1",
}
pytestmark = [pytest.mark.slow, pytest.mark.faults]


class Autoscaled:
    """A head with Ray's autoscaler, which starts and ends machines as it sees fit."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self._gcs = f"{ray.util.get_node_ip_address()}:{port}"
        config = folder / "autoscaling.yaml"
        config.write_text(yaml.safe_dump(self._config()))
        self._head = Head(
            folder,
            "--num-cpus=1",
            "--num-gpus=0",
            f"--object-store-memory={MEMORY}",
            f"--autoscaling-config={config}",
            port=port,
            environment=ENVIRONMENT,
        )
        self.dashboard = self._head.dashboard
        self.stop = self._head.stop

    def _config(self) -> dict[str, object]:
        machine = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": MEMORY}, "node_config": {}}
        nothing: dict[str, list[str]] = {name: [] for name in _LISTS}
        return {
            **nothing,
            "auth": {},
            "file_mounts": {},
            "cluster_name": "fake",
            "max_workers": MACHINES,
            "upscaling_speed": MACHINES,
            "idle_timeout_minutes": 0.2,
            "provider": {
                # By its module: by its name, Ray looks for defaults in a file that its wheel lacks.
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": self._gcs,
                "head_node_id": HEAD_ID,
                "launch_multiple": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
                "gpu": {**machine, "min_workers": 0, "max_workers": MACHINES},
            },
            "head_node_type": "ray.head.default",
        }

    def machines(self) -> int:
        """Worker nodes that live."""
        from ray._raylet import GcsClient

        nodes = GcsClient(address=self._gcs).get_all_node_info(timeout=60).values()
        return sum(1 for node in nodes if node.state == 0) - 1


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Autoscaled]:
    monkeypatch.chdir(REPOSITORY)
    head = Autoscaled(tmp_path)
    try:
        wait_for(lambda: head.machines() == 0, 180)  # the head itself is in
        yield head
    finally:
        head.stop()


def test_machines_come_and_go_with_the_job(
    head: Autoscaled, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    """Submitted without --working-dir: it runs in the folder where the head was started, as in the image."""
    manifest = examples.write_manifest(tmp_path / "data", 4)
    settings = examples.settings(tiny_sd, tiny_clip, "model.device=cpu", "training.steps=200")
    command = [
        "python",
        "jobs/invert_many.py",
        str(manifest),
        "-o",
        str(tmp_path / "out"),
        *as_options(settings),
    ]
    job = subprocess.Popen(
        [RAY, "job", "submit", "--address", head.dashboard, "--", *command],
        cwd=tmp_path,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    most = 0
    while job.poll() is None:
        most = max(most, head.machines())
        time.sleep(0.2)
    out, _ = job.communicate()
    assert job.returncode == 0, out
    assert "workers: 2, 1 GPU each" in out
    assert "4 of 4 concepts learned" in out
    assert most == MACHINES
    assert pq.read_table(tmp_path / "out" / "results.parquet").num_rows == 4
    wait_for(lambda: head.machines() == 0, 120)
