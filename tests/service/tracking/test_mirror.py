"""The MLflow view, on real SQLite: complete, written once, rebuilt from the store to the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from mlflow import MlflowClient

from tests.support import browser, examples
from tests.support.mlflow import Database, Server, single, write_view
from tests.support.waiting import wait_for
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.tracking.mirror import CONCEPT, MLflowMirror, run_keys
from textinv_ray.service.tracking.refusals import UnusableError


@pytest.fixture
def store(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Store:
    """A store that knows its job."""
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    return store


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Database:
    return Database(empty_database, tmp_path / "first")


def test_a_finished_concept(store: Store, database: Database) -> None:
    examples.finish(store, "a", stopped="clip", best_step=1)
    view = write_view(store, database)
    found = database.content()
    parent = next(run for run in database.runs() if run.info.run_id == view.parent_id)
    child = found["a"]
    assert set(found) == {"a", parent.info.run_name}
    assert child["status"] == "FINISHED"
    assert child["start"] == 1_700_000_000_000
    assert child["params"]["initializer_token"] == "cat"
    shown = [child["params"][name] for name in ("steps", "stopped", "best_step")]
    assert shown == ["2", "clip", "1"]
    assert child["metrics"]["loss"] == [(1, 1.0, 1_700_000_001_000), (2, 0.5, 1_700_000_002_000)]
    assert [point[:2] for point in child["metrics"]["clip_image_similarity"]] == [(0, 0.5), (2, 0.75)]
    assert child["metrics"]["seconds"] == [(2, 12.5, 1_700_000_000_500)]
    assert child["tags"]["tag.shelf"] == "3"
    assert child["tags"]["status"] == "done"
    assert [point[:2] for point in child["metrics"]["clip_image_similarity_gain"]] == [(2, 0.25)]
    assert [name for name in child["files"] if name.startswith("images/look")] == [
        name
        for step, seconds in ((0, 0), (6, 2))  # the last look of all concepts is at training.steps
        for name in 2 * [f"images/look+step+{step}+timestamp+{1_700_000_000_000 + 1000 * seconds}"]
    ], "each as PNG and as a small WebP"
    assert "learned_embeds.safetensors" in child["files"]


def test_the_parent(store: Store, database: Database) -> None:
    examples.finish(store, "a", clip_image_similarity=0.5)
    examples.finish(store, "b", clip_image_similarity=1.0)
    examples.fail(store, "c", "x", time=5.0)
    write_view(store, database)
    parent = database.content()["out"]
    assert parent["params"]["training.steps"] == "6"
    assert parent["metrics"]["concepts_done"][0][1] == 2
    assert parent["metrics"]["concepts_failed"][0][1] == 1
    assert parent["metrics"]["mean_clip_image_similarity"][0][1] == 0.75
    assert {"results.json", "report.html"} <= set(parent["files"])
    children = [run for run in database.runs() if CONCEPT in run.data.tags]
    (parent_id,) = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert next(run.info.run_name for run in database.runs() if run.info.run_id == parent_id) == "out"


def test_a_failed_concept(store: Store, database: Database) -> None:
    examples.fail(store, "c", "image c-1.png: is truncated", time=5.0)
    write_view(store, database)
    child = database.content()["c"]
    assert child["status"] == "FAILED"
    assert child["tags"]["error"] == "image c-1.png: is truncated"


def test_writing_again_doubles_nothing(store: Store, database: Database) -> None:
    examples.finish(store, "a")
    examples.fail(store, "c", "x", time=5.0)
    view = write_view(store, database)
    before = database.content()
    view.update("a")
    write_view(store, database).update("a")
    assert database.content() == before


def test_rebuilt_from_the_store_it_is_the_same(
    store: Store, database: Database, empty_database: Path, tmp_path: Path
) -> None:
    """Promise 2. The first view is written while the concept is learned, the second afterwards."""
    view = MLflowMirror(store, database.uri, "textinv")
    view.open()
    whole = examples.history("a")
    first = examples.history("a")
    first.cut(1)
    store.write_concept("a", "samples/step_0000000.png", examples.png(0))
    store.checkpoint("a", b"state", first.to_bytes())
    view.update("a")
    assert database.content()["a"]["status"] == "RUNNING"
    assert len(database.content()["a"]["metrics"]["loss"]) == 1
    store.checkpoint("a", b"state", whole.to_bytes())
    view.update("a")
    examples.finish(store, "a")
    view.update("a")
    examples.fail(store, "b", "x", time=5.0)
    write_view(store, database)

    rebuilt = Database(empty_database, tmp_path / "second")
    write_view(store, rebuilt)
    assert rebuilt.content() == database.content()


@pytest.mark.slow  # half a minute: a view for each call
def test_a_stop_at_any_call_doubles_nothing(
    store: Store, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at whatever call to MLflow, the next run's view is whole and single."""
    from mlflow import MlflowClient

    examples.finish(store, "a")
    left = 0

    def counted(real: Any) -> Any:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionError("killed")
            return real(self, *args, **options)

        return call

    undisturbed = Database(empty_database, tmp_path / "undisturbed")
    write_view(store, undisturbed)
    whole, stopped, calls = single(undisturbed.content()), True, 0
    while stopped:
        database = Database(empty_database, tmp_path / f"stop{calls}")
        left, stopped = calls, False
        with monkeypatch.context() as patch:
            for name in ("create_run", "log_batch", "log_image", "set_tag", "log_artifact", "set_terminated"):
                patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
            try:
                write_view(store, database)
            except ConnectionError:
                stopped = True
        write_view(store, database)
        assert single(database.content()) == whole
        calls += 1
    assert calls > 10, "the last view was stopped nowhere"


def test_a_new_result_replaces_the_run(store: Store, database: Database) -> None:
    examples.finish(store, "a")
    write_view(store, database)
    examples.finish(store, "a", fingerprint="another", learning_rate=0.5, clip_image_similarity=0.9)
    write_view(store, database)
    child = database.content()["a"]
    assert child["params"]["learning_rate"] == "0.5"


def test_a_failure_that_was_mended(store: Store, database: Database) -> None:
    examples.fail(store, "a", "x", time=5.0)
    write_view(store, database)
    examples.finish(store, "a")
    write_view(store, database)
    child = database.content()["a"]
    assert child["status"] == "FINISHED"
    assert "error" not in child["tags"]


def test_another_configuration_is_another_parent(
    store: Store, database: Database, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    examples.finish(store, "a")
    write_view(store, database)
    examples.begin(store, examples.config(tiny_sd, tiny_clip, "training.steps=9"), tmp_path)
    examples.finish(store, "a", fingerprint="another", steps=2)
    view = write_view(store, database)
    parents = [run for run in database.runs() if CONCEPT not in run.data.tags]
    assert sorted(run.data.params["training.steps"] for run in parents) == ["6", "9"]
    (child,) = [run for run in database.runs() if CONCEPT in run.data.tags]
    assert child.data.tags["mlflow.parentRunId"] == view.parent_id


def test_the_table_has_pictures(store: Store, database: Database) -> None:
    """Of the worst first: MLflow's viewer goes by the first row."""
    examples.finish(store, "a", clip_image_similarity=0.9)
    examples.finish(store, "b", clip_image_similarity=0.4)
    examples.fail(store, "c", "x", time=5.0)
    view = write_view(store, database)
    client = MlflowClient(database.uri)
    folder = Path(client.download_artifacts(view.parent_id, "results.json")).parent
    table = json.loads((folder / "results.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["concept_id"], row["gain"], row["status"]) for row in rows] == [
        ("b", -0.1, "done"),
        ("a", 0.4, "done"),
        ("c", None, "failed"),
    ]
    assert rows[0]["look"]["type"] == "image"
    assert client.download_artifacts(view.parent_id, rows[0]["look"]["filepath"])
    assert rows[2]["error"] == "x"


def test_the_address_opens_a_table_of_this_job(store: Store, database: Database) -> None:
    view = write_view(store, database)
    experiment = MlflowClient(database.uri).get_experiment_by_name("textinv")
    job = store.job()
    assert experiment is not None
    assert job is not None
    assert f"/#/experiments/{experiment.experiment_id}/runs?" in view.place
    key = dict(parse_qsl(view.place.partition("?")[2]))["viewStateShareKey"]
    state = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert job.id in state["searchFilter"]
    assert "metrics.`clip_image_similarity_gain`" in state["selectedColumns"]


def test_losses_are_thinned(store: Store, database: Database) -> None:
    """However many steps: at most tracking.loss_points, each the mean of the steps since the one before."""
    examples.finish(store, "a", steps=2500, sample_steps=[0, 2500])
    write_view(store, database)
    losses = database.content()["a"]["metrics"]["loss"]
    assert [point[0] for point in losses] == list(range(13, 2500, 13))
    assert losses[0][1] == pytest.approx(sum(0.5**step for step in range(13)) / 13)


def test_long_histories(
    store: Store, database: Database, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    """More points than MLflow takes in one call."""
    examples.begin(store, examples.config(tiny_sd, tiny_clip, "tracking.loss_points=5000"), tmp_path)
    examples.finish(store, "a", steps=2500, sample_steps=[0, 2500])
    write_view(store, database)
    assert len(database.content()["a"]["metrics"]["loss"]) == 2500


def test_where_a_job_comes_from(store: Store, database: Database) -> None:
    view = write_view(store, database)
    (parent,) = database.runs()
    assert parent.info.run_id == view.parent_id
    job = store.job()
    assert job is not None
    assert parent.data.tags["mlflow.source.name"] == job.source != ""
    assert parent.data.tags["mlflow.user"] == job.user != ""
    assert parent.data.tags.get("mlflow.source.git.commit", "") == job.git_commit
    (given,) = parent.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("manifest.parquet", job.manifest_digest[:36])
    assert len(parent.data.params) < 30, "configuration.yaml has all"


@pytest.mark.slow
def test_a_tracking_server_gets_the_same(store: Store, database: Database, server: Server) -> None:
    examples.finish(store, "a")
    examples.fail(store, "c", "x", time=5.0)
    write_view(store, database)
    write_view(store, server.view)
    write_view(store, server.view)
    assert server.view.content() == database.content()


def test_tags_that_would_pass_for_the_service_or_be_refused(store: Store, database: Database) -> None:
    evil = {
        "textinv.concept": "b",
        "mlflow.parentRunId": "x",
        "approved": "true",
        "price ($)": "9",
        "n" * 300: "1",
    }
    examples.finish(store, "a", tags=evil)
    view = write_view(store, database)
    (child,) = [run for run in database.runs() if CONCEPT in run.data.tags]
    tags = child.data.tags
    assert (tags[CONCEPT], tags["mlflow.parentRunId"], child.info.run_name) == ("a", view.parent_id, "a")
    assert "approved" not in tags
    assert (tags["tag.approved"], tags["tag.price ___"], tags["tag." + "n" * 246]) == ("true", "9", "1")


def test_what_mlflow_refuses_ends_alone(store: Store, database: Database) -> None:
    """Here an option with a name that no setting has, as a damaged or strange result may hold."""
    for concept_id in ("a", "b", "c"):
        examples.finish(store, concept_id, options={"lr (x)": 1} if concept_id == "b" else {})
    view = MLflowMirror(store, database.uri, "textinv")
    view.open()
    refused = {concept_id: view.update(concept_id) for concept_id in ("a", "b", "c")}
    assert refused["a"] == refused["c"] == ""
    assert "lr (x)" in refused["b"]
    write_view(store, database)
    found = database.content()
    assert {name: found[name]["status"] for name in ("a", "b", "c", "out")} == dict.fromkeys(
        found, "FINISHED"
    )
    assert found["b"]["tags"]["mlflow.note.content"].startswith("MLflow refused a part of this run: ")
    again = MLflowMirror(store, database.uri, "textinv")
    again.open()
    assert again.missing(run_keys(StoredResults.read(store))) == [], "no later run tries it again"


def test_damaged_pictures_are_left_out(
    store: Store, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    examples.finish(store, "a")
    name = sample_name(2)
    data = store.read_concept("a", name) or b""
    store.write_concept("a", name, data[: len(data) // 2])
    write_view(store, database)
    files = database.content()["a"]["files"]
    assert any(name.startswith("images/look+step+0") for name in files)
    assert not any(name.startswith("images/look+step+6") for name in files)
    assert f"concepts/a/{name} counts as absent: it is no picture, or damaged" in caplog.text


def test_files_stay_within_the_output(store: Store, database: Database, tmp_path: Path) -> None:
    """A stranger's database may name any folder as the place of its files."""
    from mlflow import MlflowClient

    examples.finish(store, "a")
    MlflowClient(database.uri).create_experiment("textinv", artifact_location=str(tmp_path / "elsewhere"))
    with pytest.raises(UnusableError, match=r"keeps its files at .*elsewhere, outside of this output"):
        MLflowMirror(store, database.uri, "textinv", artifacts_within=store.root).open()
    MLflowMirror(store, database.uri, "textinv", artifacts_within=str(tmp_path)).open()


@pytest.mark.slow
def test_the_address_in_a_browser(store: Store, server: Server) -> None:
    """What people see who open the printed address: this job's concepts in a table, the worst gain first."""
    examples.finish(store, "aardvark")
    examples.finish(store, "zebra", clip_image_similarity=0.4)
    view = write_view(store, server.view)
    with browser.opened() as chromium:
        page = chromium.new_page(viewport={"width": 1600, "height": 900})
        page.goto(server.uri + view.place)

        def text() -> str:
            return str(page.inner_text("body"))

        wait_for(lambda: {"aardvark", "zebra", "clip_image_similarity_gain"} <= set(text().split()), 120)
        assert text().index("zebra") < text().index("aardvark")
        assert "matching runs" in text()
