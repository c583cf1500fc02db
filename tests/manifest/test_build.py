"""Manifests that are no file, or no Parquet, or not where one looks."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from tests.support.tables import Write, good
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError


def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.parquet").touch()
    expected = f"manifst.parquet: the manifest doesn't exist in {tmp_path}; did you mean 'manifest.parquet'?"
    with pytest.raises(UserError, match=re.escape(expected)):
        Manifest.open("manifst.parquet")


@pytest.mark.parametrize("by", ["environment", "folder"])
def test_a_missing_file_in_a_submitted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(folder if by == "folder" else tmp_path)
    if by == "environment":
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(
        UserError, match=r"doesn't exist in .*`ray job submit --working-dir`: put the manifest"
    ):
        Manifest.open("m.parquet")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").touch()
    with pytest.raises(UserError, match=r"m.parquet: the manifest is an empty file$"):
        Manifest.open(str(tmp_path / "m.parquet"))


@pytest.mark.parametrize("data", [b"concept_id,images\n", b"PAR1" + b"x" * 50 + b"PAR1"])
def test_not_parquet(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"m.csv: this is not a Parquet file \(or a damaged one\); pandas'"):
        Manifest.open(str(tmp_path / "m.csv"))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this is a folder, not a manifest; make one from it with `textinv"):
        Manifest.open(str(tmp_path))


def test_no_rows(write: Write) -> None:
    path = write(concept_id=pa.array([], pa.string()), images=pa.array([], pa.list_(pa.string())))
    with pytest.raises(UserError, match="the manifest has no rows; it needs one per concept"):
        Manifest.open(path)


def test_a_uri(write: Write) -> None:
    data = Path(write(**good())).read_bytes()
    fsspec.filesystem("memory").pipe("/team/m.parquet", data)
    opened = Manifest.open("memory://team/m.parquet")
    assert (opened.num_rows, opened.base) == (3, "memory://team")
    checks.check(opened, JobConfig.load("mini", ["data.allowed_protocols=[memory]"]))
    with pytest.raises(UserError, match=r"^memory://team/none.parquet: the manifest doesn't exist$"):
        Manifest.open("memory://team/none.parquet")
    with pytest.raises(UserError, match=r"^nosuch://x/m.parquet: the manifest can't be read: "):
        Manifest.open("nosuch://me:SECRET@x/m.parquet?SECRET")
