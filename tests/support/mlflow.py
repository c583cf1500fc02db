"""Real MLflow for tests: databases to look into, and a server that can go away and come back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.network import free_ports
from tests.support.waiting import wait_for
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.mirror import MLflowMirror, run_keys


class Database:
    """A fresh MLflow database, and what is in it."""

    def __init__(self, template: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        shutil.copy(template, folder / "mlflow.db")
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"

    @classmethod
    def at(cls, uri: str) -> Database:
        """One that is there already, such as a server's."""
        found = cls.__new__(cls)
        found.uri = uri
        return found

    def runs(self) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("textinv")
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    def content(self) -> dict[str, Any]:
        """Everything that people see, by run name: no ids and no times of writing."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        content: dict[str, Any] = {}
        for run in self.runs():
            assert run.info.run_name not in content, "doubled"
            metrics = {
                name: [
                    (point.step, point.value, point.timestamp)
                    for point in client.get_metric_history(run.info.run_id, name)
                ]
                for name in run.data.metrics
            }
            files = [
                entry.path
                for folder in ("", "images")
                for entry in client.list_artifacts(run.info.run_id, folder)
            ]
            tags = {name: value for name, value in run.data.tags.items() if name != "mlflow.parentRunId"}
            content[run.info.run_name] = {
                "status": run.info.status,
                "start": run.info.start_time,
                "params": run.data.params,
                "metrics": metrics,
                "tags": tags,
                # images/samples+step+2+timestamp+1700000002000+<random>.png
                "files": sorted("+".join(name.split("+")[:5]) for name in files),
            }
        return content


class Server:
    """An `mlflow server` on a database of its own."""

    def __init__(self, template: Path, folder: Path) -> None:
        self.database = Database(template, folder)
        self.path = folder / "mlflow.db"
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.view = Database.at(self.uri)
        self._artifacts = folder / "artifacts"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = f"""server --backend-store-uri {self.database.uri} --artifacts-destination {self._artifacts}
            --host 127.0.0.1 --port {self.port} --workers 1"""
        self._process = subprocess.Popen(
            [str(Path(sys.executable).with_name("mlflow")), *command.split()],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # eight processes less
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._answers, 240, "the server didn't come up")

    def stop(self) -> None:
        """As a machine that goes: nothing is said to anybody."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except OSError:
            return False
        return True


def single(content: dict[str, Any]) -> dict[str, Any]:
    """Content with each file once: a picture is two files, and MLflow's client, stopped between them, writes the first
    one again."""
    return {name: {**run, "files": sorted(set(run["files"]))} for name, run in content.items()}


def write_view(store: Store, database: Database) -> MLflowMirror:
    """Writes a finished job's results to MLflow, as the driver does at its end."""
    view = MLflowMirror(store, database.uri, "textinv")
    view.open()
    stored = StoredResults.read(store)
    for concept_id in view.missing(run_keys(stored)):
        view.update(concept_id)
    report = Path(store.root) / "report.html"
    report.write_text("report")
    view.close("FINISHED", stored, [report])
    return view
