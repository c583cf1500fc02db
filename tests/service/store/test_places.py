"""Nothing leaves an output: neither by an id, nor by a link, nor by a name that is built from data."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.commands import textinv
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.places import OutsideError, checked_name, is_concept_id, leads_out
from textinv_ray.service.store.records import Failure, Result, parse
from textinv_ray.service.store.store import Store

OUTSIDE = ("..", ".", "", "a/b", "../a", "a\\b", "x" * 129, "ä", "a\n", "a\0", "cat copy")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An output with one finished concept."""
    store = Store(str(tmp_path / "out"))
    examples.finish(store, "cat")
    return store


@pytest.mark.parametrize("concept_id", OUTSIDE)
def test_ids_are_checked_where_they_are_read(concept_id: str) -> None:
    assert not is_concept_id(concept_id)
    for kind, record in (
        (Result, examples.result("a")),
        (Failure, Failure(concept_id="a", error="x", time=1.0, quarantined=False)),
    ):
        data = record.model_copy(update={"concept_id": concept_id}).to_bytes()
        with pytest.raises(ValueError, match=r"concept_id: Value error, concept_id .* can't name a folder"):
            parse(kind, data)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..", "a\\..\\b", "a/\0"])
def test_names_are_checked_where_they_are_opened(store: Store, name: str) -> None:
    with pytest.raises(OutsideError, match="can't name a file in an output"):
        checked_name(name)
    for action in (store.read, store.names, store.times, store.remove):
        with pytest.raises(OutsideError):
            action(name)
    for write in (store.write, store.create):
        with pytest.raises(OutsideError):
            write(name, b"x")
    with pytest.raises(OutsideError), store.open(name):
        pass
    with pytest.raises(OutsideError), store.building(name):
        pass


@pytest.mark.parametrize("command", ["export", "words", "status"])
def test_a_result_with_a_path_for_an_id(
    store: Store,
    tmp_path: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a stranger's output may hold: concepts/x says that it is ../pwn, and that folder is there, too."""
    examples.finish(store, "x")
    evil = examples.result("x").model_copy(update={"concept_id": "../pwn"})
    store.write("concepts/x/result.json", evil.to_bytes())
    os.rename(tmp_path / "out/concepts/x", tmp_path / "out/pwn")
    (tmp_path / "out/concepts/x").mkdir()
    store.write("concepts/x/result.json", evil.to_bytes())
    out = tmp_path / "files" / "out"
    options = {"export": ["--format", "diffusers", "--output", str(out)]}.get(command, [])
    code = textinv(command, store.uri, *options)
    assert code == (2 if command == "status" else 0), "an output without job.json has no status"
    assert not (tmp_path / "files" / "pwn.safetensors").exists()
    if command == "export":
        assert sorted(path.name for path in out.iterdir()) == ["cat.safetensors", "words.csv"]
    if command != "status":
        assert "concepts/x/result.json counts as absent: it can't be read: concept_id: " in caplog.text
    assert "Traceback" not in capsys.readouterr().err


def test_a_copy_made_by_hand_is_not_the_original(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    old = examples.result("cat", seed=99)
    for folder in ("cat-old", "cat copy", "cat.bak"):
        store.write(f"concepts/{folder}/result.json", old.to_bytes())
    (found,) = store.results()
    assert (found.concept_id, found.seed) == ("cat", 1)
    assert store.concepts() == ["cat", "cat-old", "cat.bak"]
    assert store.result("cat-old") is None
    assert "concepts/cat copy counts as absent: its name is not a concept_id" in caplog.text
    assert "it is of the concept 'cat'" in caplog.text
    before = len(caplog.records)
    list(store.results())
    assert len(caplog.records) == before, "it is said once"


def test_links_that_lead_out(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret.json").write_text("secret")
    (tmp_path / "out" / "job.json").symlink_to(private / "secret.json")
    (tmp_path / "out" / "concepts" / "dog").symlink_to(private)
    assert store.read("job.json") is None
    assert store.read_concept("dog", "secret.json") is None
    assert store.names("concepts/dog") == []
    with pytest.raises(StoreError, match="concepts/dog: a link leads out of the output") as caught:
        store.write_concept("dog", "secret.json", b"x")
    assert caught.value.is_permanent
    with pytest.raises(StoreError, match="leads out"):
        store.remove("concepts/dog/secret.json")
    assert (private / "secret.json").read_text() == "secret"
    assert caplog.text.count("a link leads out of the output") == 3
    store.write("job.json", b"mine")
    assert (private / "secret.json").read_text() == "secret", "a link in place of the file is replaced"


def test_links_that_stay_inside(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "latest").symlink_to(tmp_path / "out" / "concepts" / "cat")
    linked = Store(str(tmp_path / "link"))
    assert linked.result("cat") == store.result("cat")
    assert linked.read("latest/result.json") == store.read("concepts/cat/result.json")
    linked.write("latest/note", b"x")
    assert not leads_out(store.root, "none/at/all")


def test_what_is_no_file_is_not_read(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe would be waited for, for ever."""
    with caplog.at_level(logging.WARNING):
        for name in ("job.json", "results.parquet"):
            os.mkfifo(store.path(name))
            assert store.read(name) is None
            with store.open(name) as file:
                assert file is None
    assert caplog.text.count("counts as absent: it is not a regular file") == 2
    assert store.read("concepts") is None, "a folder isn't a file either"
