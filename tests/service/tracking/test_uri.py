"""MLflow's URI, as people use it."""

from __future__ import annotations

from textinv_ray.service.tracking.uri import ui_command


def test_how_to_open_it() -> None:
    assert ui_command("sqlite:////x/mlflow.db") == "mlflow ui --backend-store-uri sqlite:////x/mlflow.db"
    assert ui_command("https://me:secret@host/") == "open https://host/"
