"""The model's words, which placeholders and initializers are checked against."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from tests.support import tiny
from textinv_ray.config.job import ModelConfig
from textinv_ray.manifest import vocabulary
from textinv_ray.manifest.vocabulary import Vocabulary
from textinv_ray.util.errors import UserError


def test_words_are_found_whatever_their_case() -> None:
    words = pa.array(["cat", "Cat", "cats", "<|endoftext|>", "<cat>", "", None])
    assert Vocabulary(tiny.tokenizer()).has(words).to_pylist() == [
        True,
        True,
        False,
        True,
        False,
        False,
        False,
    ]


def test_tokens_of_a_text() -> None:
    tokenizer = tiny.tokenizer()
    known = Vocabulary(tokenizer)
    red, house = tokenizer.convert_tokens_to_ids(["red</w>", "house</w>"])
    assert known.tokens("Red house") == [red, house]
    assert known.tokens("Red house") == [red, house], "from memory"
    assert known.tokens(" ") == []


def test_from_a_folder_and_a_uri(tiny_sd: Path) -> None:
    """Of a URI, the tokenizer alone is copied."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{tiny_sd}/tokenizer/", "/vocabulary/sd/tokenizer/", recursive=True)
    here = vocabulary.load(ModelConfig(path=str(tiny_sd)))
    there = vocabulary.load(ModelConfig(path="memory://vocabulary/sd"))
    memory.store.clear()
    assert here.get_vocab() == there.get_vocab() == tiny.tokenizer().get_vocab()


def test_the_bundled_models_by_name() -> None:
    assert "ginger</w>" in vocabulary.load(ModelConfig(path="mini-sd")).get_vocab()


@pytest.mark.parametrize("path", ["{folder}/none", "memory://me:SECRET@none/such"])
def test_what_cannot_be_loaded(path: str, tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    with pytest.raises(UserError, match=r"the tokenizer of the model .* can't be loaded: ") as caught:
        vocabulary.load(ModelConfig(path=path.format(folder=folder)))
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_files_is_an_error_and_not_a_vocabulary_without_words(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match="can't be loaded: it has no words"):
        vocabulary.load(ModelConfig(path=str(tmp_path)))


def test_a_model_of_the_hub_without_a_network_is_an_error() -> None:
    with pytest.raises(UserError, match="the tokenizer of the model nobody/none can't be loaded: "):
        vocabulary.load(ModelConfig(path="nobody/none"))
