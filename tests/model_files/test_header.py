"""Headers of safetensors files, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import save, save_file

from textinv_ray.config.model_families import UnsupportedModelError
from textinv_ray.model_files import header
from textinv_ray.model_files.header import FIRST_READ, read_header

LOCAL = fsspec.filesystem("file")


def test_names_shapes_places_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    save_file({"a": tensor, "empty": torch.zeros(0)}, path, {"modelspec.title": "X"})
    found = read_header(LOCAL, str(path), "x")
    assert found.metadata == {"modelspec.title": "X"}
    assert {name: info.shape for name, info in found.tensors.items()} == {"a": (2, 3), "empty": (0,)}
    info = found.tensors["a"]
    assert path.read_bytes()[info.start : info.end] == tensor.numpy().tobytes()


class Counting(LocalFileSystem):
    """Notes which bytes are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []

    def cat_file(self, path: str, start: int = 0, end: int = 0, **options: object) -> bytes:
        self.reads.append((start, end))
        return bytes(super().cat_file(path, start=start, end=end))


def test_one_small_read_suffices_and_a_longer_header_takes_two(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(FIRST_READ)}, path)
    files = Counting()
    read_header(files, str(path), "x")
    assert files.reads == [(0, FIRST_READ)]
    files.reads.clear()  # fsspec keeps one instance
    save_file({f"tensor {number}" + "x" * 1000: torch.zeros(1) for number in range(1100)}, path)
    assert len(read_header(files, str(path), "x").tensors) == 1100
    assert len(files.reads) == 2


SOUND = save({"a": torch.zeros(100)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SOUND[:-1], r"is damaged: .* has 472 bytes, the file has 471 \(a download that was cut off\?\)"),
        (SOUND + b"x", r"is damaged: .* has 472 bytes, the file has 473$"),
        (SOUND[:40], "is not a safetensors file, or its download was cut off"),
        (b"", "is not a safetensors file"),
        (b"<!DOCTYPE html><html>" * 10, "is not a safetensors file"),
        (b"PK\x03\x04" + b"\0" * 100, "is a pickle, .* never read"),
        (b"\x80\x02}q\0" + b"\xff" * 100, "is a pickle, .* never read"),
        ((4).to_bytes(8, "little") + b"[1]]", "its header is damaged"),
        ((2).to_bytes(8, "little") + b"[]", "its header is damaged"),
        ((9).to_bytes(8, "little") + b'{"a": 1} ', "its header is damaged"),
        ((20000).to_bytes(8, "little") + b"[" * 20000, "its header is damaged"),
    ],
)
def test_what_is_no_whole_safetensors_file(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=f"^the model .x. .*{message}"):
        read_header(LOCAL, str(path), "x")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
    ],
)
def test_entries_that_make_no_sense(entry: dict[str, object], tmp_path: Path) -> None:
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(UnsupportedModelError, match="its header is damaged"):
        read_header(LOCAL, str(path), "x")


def test_the_limit_is_that_of_the_format() -> None:
    assert header.LONGEST == 100_000_000
