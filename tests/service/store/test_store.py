"""The store: whole files or none, result.json last, ids that stay inside."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.support import examples
from tests.support.network import free_ports
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.util.errors import UserError


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store(str(tmp_path / "out"))
    else:
        yield Store("memory://results/out")
        fsspec.filesystem("memory").store.clear()


def test_finish_and_read_back(store: Store) -> None:
    assert store.result("a") is None
    examples.fail(store, "a", "no such image")
    store.checkpoint("a", b"state", b"history")
    assert list(store.states("a")) == [("checkpoint.safetensors", b"state")]

    examples.finish(store, "a")

    found = store.result("a")
    assert found is not None
    assert found == examples.result("a", word_sha256=found.word_sha256)
    word = store.read_concept("a", "learned_embeds.safetensors") or b""
    assert found.word_sha256 == hashlib.sha256(word).hexdigest()
    assert store.failure("a") is None
    assert list(store.states("a")) == [("state.safetensors", b"state")]
    assert store.names("concepts") == ["a"]
    assert store.names("concepts/a") == [
        "history.parquet",
        "initial_embeds.safetensors",
        "learned_embeds.safetensors",
        "result.json",
        "samples",
        "state.safetensors",
        "training.png",
    ]


def test_a_file_is_created_once(store: Store) -> None:
    assert store.create("a/lock.json", b"first")
    assert not store.create("a/lock.json", b"second")
    assert store.read("a/lock.json") == b"first"
    assert store.names("a") == ["lock.json"], "no temporary file stays"
    store.remove("a/lock.json")
    assert store.create("a/lock.json", b"third")


def test_finishing_twice_changes_nothing(store: Store) -> None:
    examples.finish(store, "a")
    before = {name: store.read_concept("a", name) for name in ("result.json", "learned_embeds.safetensors")}
    examples.finish(store, "a")
    assert before == {name: store.read_concept("a", name) for name in before}


def test_samples_of_an_earlier_run_go(store: Store) -> None:
    examples.finish(store, "a", sample_steps=[0, 1, 2])
    examples.finish(store, "a", sample_steps=[0, 2])
    assert store.names("concepts/a/samples") == [Path(sample_name(step)).name for step in (0, 2)]


def test_results_and_failures_by_id(store: Store) -> None:
    for concept_id in ("b", "a", "c"):
        examples.finish(store, concept_id)
    examples.fail(store, "d", "x")
    assert [found.concept_id for found in store.results()] == ["a", "b", "c"]
    assert [found.concept_id for found in store.failures()] == ["d"]


def test_empty_store(store: Store) -> None:
    assert list(store.results()) == []
    assert list(store.failures()) == []
    assert store.job() is None
    assert store.names("concepts") == []


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"\xff\xfe"])
def test_unreadable_result_counts_as_absent(store: Store, broken: bytes) -> None:
    examples.finish(store, "a")
    store.write_concept("a", "result.json", broken)
    assert store.result("a") is None
    assert list(store.results()) == []


def test_a_stop_at_any_write_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """result.json is there only when all the rest is, and of the same run: whatever write is the last."""
    store = Store(str(tmp_path))
    examples.finish(store, "a", seed=1)
    real_write, stop_at = Store.write, 0

    def write(self: Store, name: str, data: bytes) -> None:
        nonlocal stop_at
        stop_at -= 1
        if stop_at < 0:
            raise OSError("killed")
        real_write(self, name, data)

    monkeypatch.setattr(Store, "write", write)
    for count in range(4):
        stop_at = count
        files = dict.fromkeys(("learned_embeds.safetensors", "state.safetensors", "history.parquet"), b"new")
        with pytest.raises(OSError, match="killed"):
            store.finish(examples.result("a", seed=2), files)
        assert store.result("a") is None
    stop_at = 4
    store.finish(examples.result("a", seed=2), files)
    found = store.result("a")
    assert found is not None
    assert found.seed == 2


def test_no_half_written_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write("job.json", b"old")

    def replace(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(StoreError, match=r"job\.json: no space left"):
        store.write("job.json", b"new")
    assert store.read("job.json") == b"old"
    assert store.names(".") == ["job.json"]


@pytest.mark.parametrize("concept_id", ["..", ".", "", "a/b", "../a", "a\\b", "x" * 129, "ä", "a\n"])
def test_ids_that_leave_the_store(tmp_path: Path, concept_id: str) -> None:
    store = Store(str(tmp_path / "out"))
    with pytest.raises(ValueError, match="can't name a folder"):
        store.write_concept(concept_id, "result.json", b"{}")
    with pytest.raises(ValueError, match="can't name a folder"):
        examples.fail(store, concept_id, "x")
    assert not list(tmp_path.rglob("*.json"))


def test_shown_has_no_credentials() -> None:
    assert Store("memory://user:secret@bucket/x").shown == "memory://bucket/x"


def test_json_is_readable(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    examples.fail(store, "a", "größer", time=5.0)
    text = (tmp_path / "failed/a.json").read_text("utf-8")
    assert "größer" in text
    assert json.loads(text) == {"concept_id": "a", "error": "größer", "time": 5.0, "quarantined": False}


def test_a_file_in_place_of_the_output_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory") as caught:
        Store(str(tmp_path / "file")).create("lock.json", b"mine")
    assert caught.value.is_permanent


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("nosuch://a", "the output nosuch://a: nosuch:// is no protocol that fsspec knows"),
        ("gs://me:secret@b/x", "gs:// needs another Python package: pip install 'textinv_ray[gcs]'"),
        ("  ", "the path of an output is empty: is a shell variable unset?"),
    ],
)
def test_outputs_that_cannot_be_opened(uri: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        Store(uri)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_refuses_connections_is_away() -> None:
    """fsspec says that the file doesn't exist."""
    (port,) = free_ports(1)
    store = Store(f"http://127.0.0.1:{port}/out", patience_s=0)
    for read in (lambda: store.read("job.json"), lambda: store.names("concepts")):
        with pytest.raises(StoreError, match=r"127\.0\.0\.1") as caught:
            read()
        assert not caught.value.is_permanent


def test_what_is_done_is_looked_at(store: Store) -> None:
    """A word that is missing or was changed, and in a local store a training.png that is missing or cut off."""
    for concept_id in ("a", "b", "c", "d", "e", "f"):
        examples.finish(store, concept_id)
    word = store.read_concept("a", "learned_embeds.safetensors") or b""
    picture = store.read_concept("a", "training.png") or b""
    assert store.damaged(list(store.results())) == []
    store.write_concept("b", "learned_embeds.safetensors", word[:-1] + b"\1")
    store.remove("concepts/c/learned_embeds.safetensors")
    store.write_concept("d", "training.png", picture[: len(picture) // 2])
    store.remove("concepts/e/training.png")
    assert store.damaged(list(store.results())) == ["b", "c"] + (["d", "e"] if store.is_local else [])
    store.reopen("b")
    assert [found.concept_id for found in store.results()] == ["a", "c", "d", "e", "f"]
    assert [name for name, _ in store.states("b")] == ["state.safetensors"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for below in ("file", "file/out"):
        with pytest.raises(StoreError, match=r"/file is a file") as caught:
            Store(str(tmp_path / below)).check_writable()
        assert caught.value.is_permanent
    Store(str(tmp_path / "new" / "out")).check_writable()
    assert not (tmp_path / "new").exists()
    Store("memory://anything").check_writable()
