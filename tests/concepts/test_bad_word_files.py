"""Files of words that are pickles, damaged, or something else: refused in one line, and never opened by pickle."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensors import stored
from textinv_ray.concepts import word_files


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["word.pt", "word.bin", "word.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(
        {"string_to_param": {"*": Trap(tmp_path / "opened")}},
        tmp_path / name,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        word_files.read_words(tmp_path / name)
    assert not (tmp_path / "opened").exists()


def test_a_second_file_that_is_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "cat.safetensors").write_bytes(stored({"<x>": torch.ones(1, 768)}))
    torch.save({"<x>": Trap(tmp_path / "opened")}, tmp_path / "cat_2.safetensors")
    with pytest.raises(ValueError, match=r"'cat_2.safetensors' is a pickle, which can run code"):
        word_files.read_words(tmp_path / "cat.safetensors")
    assert not (tmp_path / "opened").exists()


ONE, TWO = torch.ones(1, 2), torch.ones(2, 3)
HEADER = json.dumps({}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"rubbish" * 9, "is not a safetensors file"),
        (stored({"<x>": ONE})[:-1], "is not a safetensors file"),
        (struct.pack("<Q", len(HEADER)) + HEADER, "has no word in it"),
        (stored({"x": torch.ones(1, 2, 3)}), r"not a file of words: 'x' is \(1, 2, 3\)"),
        (stored({"x": torch.tensor(1.0)}), r"not a file of words: 'x' is \(\)"),
        (stored({"x": torch.ones(1, 2, dtype=torch.int64)}), "of I64"),
        (stored({"x": torch.ones(1, 2, dtype=torch.bool)}), "of BOOL"),
        (stored({"x": torch.ones(1, 2).to(torch.float8_e4m3fn)}), "of F8_E4M3"),
        (stored({"x": torch.ones(0, 2)}), "not a file of words"),
        (stored({"x": torch.ones(2, 0)}), "not a file of words"),
        (stored({"x": torch.tensor([[1.0, float("nan")]])}), "the word 'x' has values that are not finite"),
        (stored({"x": torch.tensor([[1.0, 1e300]], dtype=torch.float64)}), "not finite"),
        (stored({"clip_l": ONE, "<x>": ONE}), "several nameless tensors: <x>, clip_l"),
        (stored({"emb_params": ONE, "clip_l": ONE}), "several nameless tensors: clip_l, emb_params"),
        (
            stored({"clip_l": ONE, "clip_g": TWO}),
            "the encoders clip_l, clip_g have different numbers",
        ),
        (stored({"t5": ONE, "t5xxl": ONE}), "has vectors for one encoder twice: t5, t5xxl"),
    ],
)
def test_what_is_not_a_file_of_words(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        word_files.read_words(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    assert "'w.safetensors'" in str(caught.value)


@given(st.data())
def test_damaged_files_never_do_worse_than_a_value_error(data: st.DataObject) -> None:
    content = bytearray(word_files.store_word("<x>", {"clip_l": ONE.numpy(), "clip_g": ONE.numpy()}))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        found = word_files.parse_words(bytes(content), "w.safetensors")
    except ValueError:
        pass
    else:
        assert all(vectors.dtype == np.float32 for word in found.values() for vectors in word.values())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be read: No such file"):
        word_files.read_words(tmp_path / "none.safetensors")
