"""Words in MLflow's model registry: once, by an alias that follows the approvals."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from tests.support import examples
from tests.support.commands import textinv
from tests.support.mlflow import Database, write_view
from textinv_ray.service.reviewing.decide import Request, decide
from textinv_ray.service.store.records import Verdict
from textinv_ray.service.store.store import Store


@pytest.fixture
def store(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    for concept_id in ("a", "b"):
        examples.finish(store, concept_id)
    return store


@pytest.fixture
def database(store: Store, tmp_path: Path, empty_database: Path) -> Database:
    database = Database(empty_database, tmp_path / "mlflow")
    write_view(store, database)
    return database


def say(store: Store, verdict: Verdict, fingerprint: str = "fingerprint of a") -> None:
    decide(store, Request("a", fingerprint, verdict, "eva"))


def test_approved_words_by_alias(
    store: Store, database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database.uri)
    client = MlflowClient(database.uri)
    say(store, "approved")
    assert textinv("register", store.uri, "--approved") == 0
    assert "textinv.a: a new version\n1 registered, 0 were there already" in capsys.readouterr().out
    assert [model.name for model in client.search_registered_models()] == ["textinv.a"]
    folder = download_artifacts("models:/textinv.a@approved")
    word = store.read_concept("a", "learned_embeds.safetensors")
    assert (Path(folder) / "learned_embeds.safetensors").read_bytes() == word

    assert textinv("register", store.uri, "--approved") == 0
    assert "0 registered, 1 were there already" in capsys.readouterr().out

    examples.finish(store, "a", fingerprint="another")
    assert textinv("register", store.uri, "--approved") == 0
    assert "textinv.a: no longer approved" in capsys.readouterr().out
    say(store, "approved", "another")
    assert textinv("register", store.uri, "--approved") == 1
    assert "MLflow has no run of their word: a; run `textinv track" in capsys.readouterr().err
    write_view(store, database)
    assert textinv("register", store.uri, "--approved") == 0
    assert client.get_model_version_by_alias("textinv.a", "approved").version in (2, "2")


def test_all_words_without_an_alias(store: Store, database: Database) -> None:
    uri = ("--tracking-uri", database.uri)
    assert textinv("register", store.uri, "--only", "b", "--prefix", "shop.", *uri) == 0
    (model,) = MlflowClient(database.uri).search_registered_models()
    assert (model.name, dict(model.aliases)) == ("shop.b", {})


def test_mlflow_is_needed(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("register", store.uri, "--tracking-uri", f"sqlite:///{tmp_path}/none.db") == 2
    assert "there is no MLflow database" in capsys.readouterr().err
