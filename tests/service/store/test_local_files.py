"""Whole files on local disks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from textinv_ray.service.store import local_files


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    for data in (b"first", b"second"):
        local_files.write(str(path), data)
        assert path.read_bytes() == data
    assert [file.name for file in path.parent.iterdir()] == ["b.json"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        local_files.write(str(tmp_path / "taken"), b"data")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_one_of_many_creates_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"

    def create(number: int) -> bool:
        try:
            local_files.create(str(path), str(number).encode())
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert sum(created) == 1
    assert path.read_bytes() == str(created.index(True)).encode()
    assert [file.name for file in tmp_path.iterdir()] == ["lock.json"]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(NotADirectoryError):
        local_files.create(str(tmp_path / "out" / "lock.json"), b"")
