"""MLflow's URI, as people use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import examples
from textinv_ray.config.job import JobConfig
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.uri import default_uri, how_to_open, uri_of_output
from textinv_ray.util.errors import UserError


def test_how_to_open_it() -> None:
    command = "mlflow ui --backend-store-uri sqlite:////x/mlflow.db"
    assert how_to_open("sqlite:////x/mlflow.db") == command
    place = "/#/experiments/1/runs"
    assert how_to_open("sqlite:////x/mlflow.db", place) == f"{command}\n  then http://127.0.0.1:5000{place}"
    assert how_to_open("https://me:secret@host/", place) == f"https://host{place}"


@pytest.mark.parametrize("named", ["https://me:pw@evil.example/mlflow", "sqlite:////etc/cron.d/x.db"])
def test_a_place_that_only_job_json_names_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Whoever wrote the output would get this environment's credentials, or a database at any path."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(str(tmp_path / "out"))
    job = examples.job(JobConfig.load("mini", [f"tracking.uri={named}"]))
    with pytest.raises(UserError, match="which isn't followed by itself: give --tracking-uri") as caught:
        uri_of_output(None, job, store)
    assert "pw" not in str(caught.value)
    assert uri_of_output("http://mine", job, store) == "http://mine"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    assert uri_of_output(None, job, store) == named, "the environment names it, too"


def test_the_database_beside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(str(tmp_path / "out"))
    job = examples.job(JobConfig())
    assert uri_of_output(None, job, store) == default_uri(store) == f"sqlite:///{tmp_path}/out/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert uri_of_output(None, job, store) == "http://server"
