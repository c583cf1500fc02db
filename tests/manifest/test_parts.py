"""Manifests of several files, and of any name: what counts as a part, and what messages call it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.network import free_ports
from tests.support.tables import CONFIG, good, problems
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError


def part(path: Path, ids: str, **columns: Any) -> Path:
    """A Parquet file with a row for each letter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {**good(len(ids)), "concept_id": list(ids), **columns}
    pq.write_table(pa.table(table), path)
    return path


def ids(uri: str | Path) -> str:
    return "".join(row["concept_id"] for row in Manifest.open(str(uri)).rows())


@pytest.mark.parametrize(
    "name",
    ["pets.pq", "pets.parq", "manifest", "a?b.parquet", "a*b.parquet", "a[1].parquet", "a%20b.csv", "#.x"],
)
def test_a_file_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = part(tmp_path / "x?y" / name, "abc")
    opened = Manifest.open(str(path))
    assert (opened.base, ids(path)) == (str(path.parent), "abc")
    assert ids(path.as_uri()) == "abc"
    checks.check(opened, CONFIG)


@pytest.mark.parametrize("folder", ["learning_rate=0.5", "steps=4", "concept_id=x", "x=1/y=2"])
def test_names_of_folders_are_no_columns(tmp_path: Path, folder: str) -> None:
    path = part(tmp_path / folder / "m.parquet", "ab", learning_rate=[0.001, 0.002], steps=[7, 8])
    for uri in (path, tmp_path):
        opened = Manifest.open(str(uri))
        checks.check(opened, CONFIG)
        assert [(row["concept_id"], row["learning_rate"], row["steps"]) for row in opened.rows()] == [
            ("a", 0.001, 7),
            ("b", 0.002, 8),
        ]


def test_a_folder_of_parts(tmp_path: Path) -> None:
    """As Spark, Ray Data and DuckDB write them; with parts without rows, and what isn't a part."""
    root = tmp_path / "pets"
    part(root / "part-00001.snappy.parquet", "de")
    part(root / "part-00000.snappy.parquet", "abc")
    part(root / "day=2" / "part-00002.parquet", "f")
    pq.write_table(pa.table(good(1)).slice(0, 0), root / "part-00003.parquet")
    (root / "_SUCCESS").touch()
    (root / ".part-00000.snappy.parquet.crc").touch()
    (root / "readme.md").touch()
    part(root / "_temporary" / "part-00009.parquet", "z")
    assert ids(root) == ids(f"{root}/") == ids(root.as_uri()) == "fabcde"
    opened = Manifest.open(str(root))
    assert (opened.num_rows, opened.base, opened.count_images()) == (6, str(root), 6)


def test_parts_without_endings(tmp_path: Path) -> None:
    part(tmp_path / "pets" / "part-0", "ab")
    part(tmp_path / "pets" / "part-1", "c")
    assert ids(tmp_path / "pets") == "abc"


def test_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part(tmp_path / "x" / "1.parquet", "a")
    part(tmp_path / "x" / "2.parquet", "b")
    part(tmp_path / "y" / "1.parquet", "c")
    monkeypatch.chdir(tmp_path)
    assert ids("x/*.parquet") == "ab"
    assert ids(tmp_path / "*" / "1.parquet") == "ac"
    assert ids("*") == ids(tmp_path / "[xy]") == "abc"  # folders, with the parts in them
    assert Manifest.open("x/*.parquet").base == str(tmp_path / "x")
    with pytest.raises(UserError, match=r"^z/\*.parquet: the manifest doesn't exist"):
        Manifest.open("z/*.parquet")


def test_a_prefix_of_a_store(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name, letters in (("0", "ab"), ("1", "c")):
        memory.pipe(f"/parts/pets/part-{name}.parquet", part(tmp_path / name, letters).read_bytes())
    memory.pipe("/parts/pets/_SUCCESS", b"")
    assert (
        ids("memory://parts/pets")
        == ids("memory://parts/pets/")
        == ids("memory://parts/pets/*.parquet")
        == "abc"
    )
    assert ids("memory://parts/p*s") == "abc"
    opened = Manifest.open("memory://parts/pets/")
    assert opened.base == "memory://parts/pets"
    checks.check(opened, JobConfig.load("mini", ["data.allowed_protocols=[memory]"]))
    with pytest.raises(UserError, match=r"^memory://parts/nothing: the manifest doesn't exist"):
        Manifest.open("memory://parts/nothing")


def test_messages_name_the_part_and_the_row_in_it(tmp_path: Path) -> None:
    part(tmp_path / "0.parquet", "abc")
    part(tmp_path / "day=2" / "1.parquet", "da", steps=[0, -1])
    assert problems(str(tmp_path)) == [
        "day=2/1.parquet, row 1 (a), column 'steps': -1 is out of range; give a whole number >= 0 and <= 1000000",
        "day=2/1.parquet, row 1 (a), column 'concept_id': 'a' is used by 0.parquet, row 0 already; give each "
        "concept its own",
    ]


def test_parts_may_have_different_columns_if_each_is_sound(tmp_path: Path) -> None:
    part(tmp_path / "0.parquet", "ab", steps=pa.array([5, 6], pa.int8()))
    part(tmp_path / "1.parquet", "c", steps=pa.array([7.0]))
    part(tmp_path / "2.parquet", "d", steps=pa.array([None], pa.null()))
    part(tmp_path / "3.parquet", "e")
    opened = Manifest.open(str(tmp_path))
    checks.check(opened, CONFIG)
    assert [row.get("steps") for row in opened.rows()] == [5, 6, 7, None, None]
    part(tmp_path / "4.parquet", "f", steps=["many"])
    (found,) = problems(str(tmp_path))
    assert found == "4.parquet, column 'steps': has the type string; expected: integer"
    pq.write_table(pa.table({"concept_id": ["g"]}), tmp_path / "5.parquet")
    assert (
        "5.parquet, column 'images': is missing; expected: list of strings (URIs) or list of"
        in problems(str(tmp_path))[0]
    )


def test_an_empty_path_is_no_folder() -> None:
    with pytest.raises(UserError, match="the manifest's path is empty"):
        Manifest.open("")


def test_a_part_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    part(tmp_path / "0.parquet", "abc")
    (tmp_path / "1.parquet").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"1.parquet: this is not a Parquet file \(or a damaged one\)"):
        Manifest.open(str(tmp_path))


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "/dev/null"])
def test_what_is_no_file_is_refused_and_nothing_waits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.parquet"
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(kind)
    with pytest.raises(UserError, match=r"m.parquet: is not a regular file"):
        Manifest.open(str(path))


def test_a_file_that_was_written_anew_is_noticed(tmp_path: Path) -> None:
    path = part(tmp_path / "m.parquet", "abc")
    opened = Manifest.open(str(path))
    assert len(list(opened.rows())) == 3
    part(path, "abcd")
    with pytest.raises(UserError, match=r"m.parquet: was written anew while it was being read; start again"):
        list(opened.rows())


def test_a_server_that_refuses_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec says that the file doesn't exist."""
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 1000)  # longer than it is tried
    (port,) = free_ports(1)
    with pytest.raises(UserError, match=r"x\.parquet: the manifest can't be read: .*127\.0\.0\.1"):
        Manifest.open(f"http://127.0.0.1:{port}/x.parquet")
