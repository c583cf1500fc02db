"""The store on a server that speaks S3, which is at times busy, away or not ours to write to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from tests.support import examples
from tests.support.s3 import BUCKET, S3Server
from tests.support.waiting import wait_for
from textinv_ray.config.model import ModelConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models import sources
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # Without botocore's own retries: those of the store are tested, and both together would wait for half a minute.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(retries, "LONGEST_WAIT_S", 0.5)
    fsspec.filesystem("s3").clear_instance_cache()
    server.heal()
    server.requests.clear()
    return server


@pytest.fixture
def store(s3: S3Server, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://{BUCKET}/{request.node.name}")


def test_everything_a_job_keeps(store: Store, s3: S3Server) -> None:
    store.checkpoint("a", b"state", b"history")
    assert list(store.states("a")) == [("checkpoint.safetensors", b"state")]
    examples.finish(store, "a")
    examples.finish(store, "b")
    examples.fail(store, "c", "no such image")
    assert [found.concept_id for found in store.results()] == ["a", "b"]
    found = store.result("a")
    assert found is not None
    assert found == examples.result("a", word_sha256=found.word_sha256)
    assert store.result("c") is None
    assert results_table.write(store, StoredResults.read(store)) == 3
    with store.fs.open(store.path("results.parquet")) as file:
        assert pq.read_table(file)["concept_id"].to_pylist() == ["a", "b", "c"]
    assert "checkpoint.safetensors" not in store.names("concepts/a")


def test_a_dry_run_finds_out_whether_it_can_be_written(store: Store, s3: S3Server) -> None:
    store.check_writable()
    assert store.fs.find(store.root) == [], "nothing stays behind"
    s3.fail("denied", only=("PUT", "POST"))
    with pytest.raises(StoreError, match=r"Access ?Denied"):
        store.check_writable()
    s3.heal()
    with pytest.raises(StoreError, match="bucket"):
        Store("s3://no-such-bucket/out").check_writable()


@pytest.mark.parametrize("mode", ["slow down", "broken"])
def test_a_server_that_is_busy_is_asked_again(store: Store, s3: S3Server, mode: str) -> None:
    s3.fail(mode, times=8)
    store.write("job.json", b"{}")
    s3.fail(mode, times=8)
    assert store.read("job.json") == b"{}"
    assert s3.times == 0, "all the failures were met"


def test_a_server_that_is_away_is_waited_for(
    store: Store, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    store.write("job.json", b"old")
    s3.stop()
    written = threading.Thread(target=store.write, args=("job.json", b"new"))
    written.start()
    wait_for(lambda: "trying again" in caplog.text)
    assert written.is_alive()
    s3.start()
    written.join(60)
    assert store.read("job.json") == b"new"


def test_results_of_a_busy_server_dont_vanish(store: Store, s3: S3Server) -> None:
    """A result that can't be read now must not count as absent: its concept would be learned again."""
    for index in range(4):
        examples.finish(store, f"c{index}")
    store.names("concepts")
    s3.fail("broken", times=9, only=("GET",))
    names = [f"concepts/c{index}/result.json" for index in range(4)]
    found = {name: json.loads(data or b"{}").get("status") for name, data in store.read_many(names)}
    assert found == dict.fromkeys(names, "done")


def test_denied_stops_at_once(store: Store, s3: S3Server) -> None:
    s3.fail("denied")
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"the output s3://{BUCKET}/.*/job\.json: access denied") as error:
        store.write("job.json", b"{}")
    assert error.value.is_permanent
    with pytest.raises(StoreError, match="access denied"):
        store.read("job.json")
    assert time.monotonic() - began < 10


def test_no_such_bucket(s3: S3Server) -> None:
    with pytest.raises(StoreError, match=r"s3://nobody-s/x/job\.json: .*does the bucket exist"):
        Store("s3://nobody-s/x").write("job.json", b"{}")


def test_patience_ends(s3: S3Server) -> None:
    s3.fail("broken")
    with pytest.raises(StoreError) as error:
        Store(f"s3://{BUCKET}/x", patience_s=0.5).write("job.json", b"{}")
    assert not error.value.is_permanent


def test_manifest_and_model_from_there(s3: S3Server, tmp_path: Path, tiny_sd: Path) -> None:
    path = examples.write_manifest(tmp_path, 2)
    fs = fsspec.filesystem("s3")
    fs.put_file(str(path), f"{BUCKET}/data/manifest.parquet")
    fs.put(f"{tiny_sd}/", f"{BUCKET}/model/", recursive=True)
    s3.fail("broken", times=6)
    opened = Manifest.open(f"s3://{BUCKET}/data/manifest.parquet")
    assert opened.num_rows == 2
    assert opened.base == f"s3://{BUCKET}/data"
    here = sources.facts(ModelConfig(path=str(tiny_sd)))
    assert sources.facts(ModelConfig(path=f"s3://{BUCKET}/model")) == here
    with pytest.raises(UserError, match="doesn't exist"):
        Manifest.open(f"s3://{BUCKET}/data/other.parquet")


def test_a_file_is_created_once(store: Store, s3: S3Server) -> None:
    assert store.create("lock.json", b"first")
    assert not store.create("lock.json", b"second")
    assert store.read("lock.json") == b"first"
    s3.fail("denied", only=("PUT",))
    with pytest.raises(StoreError, match="access denied"):
        store.create("another.json", b"third")
