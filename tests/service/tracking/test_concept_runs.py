"""What reviewers say in MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.commands import textinv
from tests.support.mlflow import Database, write_view
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.concept_runs import ConceptRuns


def test_approved_words(
    tmp_path: Path,
    tiny_sd: Path,
    tiny_clip: Path,
    empty_database: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Words that reviewers approve in MLflow are exported. An approval isn't carried over to a new word."""
    from mlflow import MlflowClient

    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    for concept_id in ("a", "b", "c"):
        examples.finish(store, concept_id)
    database = Database(empty_database, tmp_path / "first")
    write_view(store, database)
    shutil.rmtree(tmp_path / "export", ignore_errors=True)
    export = ["export", store.uri, "--format", "diffusers", "--output", str(tmp_path / "export")]
    export += ["--approved", "--tracking-uri", database.uri]
    assert textinv(*export) == 2
    assert "no word is approved: approve some with `textinv review" in capsys.readouterr().err

    client = MlflowClient(database.uri)
    tags = {"a": "true", "b": "True ", "c": "no"}
    for run in database.runs():
        if run.info.run_name in tags:
            client.set_tag(run.info.run_id, "approved", tags[run.info.run_name])
    assert ConceptRuns(store, database.uri, "textinv").approved() == ["a", "b"]
    assert textinv(*export) == 0
    assert (tmp_path / "export" / "a.safetensors").exists()
    assert not (tmp_path / "export" / "c.safetensors").exists()

    examples.finish(store, "a", fingerprint="learned anew")
    assert ConceptRuns(store, database.uri, "textinv").approved() == ["b"]
