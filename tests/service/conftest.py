"""What the tests of this folder share: a Ray, models, an MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.bench import Bench
from tests.support.mlflow import Server
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    """A Ray of this process alone, until the tests of the service are over: other tests need a process without one."""
    import ray

    often = {"metrics_report_interval_ms": 1000}  # Ray's own is ten seconds
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=often)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def backbone(tiny_sd: Path) -> Backbone:
    """The model of the tests, which all share: whoever changes it takes a copy."""
    return load_backbone(str(tiny_sd), dtype="float32")


@pytest.fixture(scope="session")
def scorer(tiny_clip: Path) -> Scorer:
    return Scorer.load(str(tiny_clip))


@pytest.fixture
def bench(backbone: Backbone, scorer: Scorer, tiny_sd: Path, tiny_clip: Path, tmp_path: Path) -> Bench:
    """Whose workers are soon missed when they are silent."""
    quick = ["service.heartbeat_s=0.1", "service.lease_timeout_s=1", "service.checkpoint_every_s=0.05"]
    return Bench(backbone, scorer, examples.config(tiny_sd, tiny_clip, *quick), Store(str(tmp_path)))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of MLflow; made once: creating the tables takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[Server]:
    """A real `mlflow server` that runs."""
    made = Server(empty_database, tmp_path / "server")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def similar_words(tmp_path: Path) -> Store:
    """An output with its results table: words that are near one another, one of another model, one that failed."""
    store = Store(str(tmp_path))
    examples.finish(store, "cat", [[1, 0, 0, 0]])
    examples.finish(store, "dog", [[0, 1, 0, 0]], norms={"clip_l": [1.5]})
    examples.finish(store, "kitten", [[2, 0.1, 0, 0], [2, 0, 0.1, 0]])
    examples.finish(store, "other-model", [[1, 0, 0]], embedding_dims={"clip_l": 3})
    examples.fail(store, "bad", "x")
    results_table.write(store, StoredResults.read(store))
    return store
