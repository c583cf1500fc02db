"""The model's words, which placeholders and initializers are checked against."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from transformers import CLIPTokenizer

from tests.support import single_files, tiny, tiny_flow
from textinv_ray.config.model import ModelConfig
from textinv_ray.manifest import vocabulary
from textinv_ray.manifest.vocabulary import Vocabulary
from textinv_ray.util.errors import UserError


def test_words_are_found_whatever_their_case() -> None:
    words = pa.array(["cat", "Cat", "cats", "<|endoftext|>", "<cat>", "", None])
    assert Vocabulary({"clip_l": tiny.tokenizer()}).has(words).to_pylist() == [
        True,
        True,
        False,
        True,
        False,
        False,
        False,
    ]


def of_one_word() -> CLIPTokenizer:
    return CLIPTokenizer(vocab={"cat</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[])


def test_a_text_must_give_tokens_of_every_tokenizer() -> None:
    known = Vocabulary({"clip_l": tiny.tokenizer()})
    assert known.reads("Red house")
    assert known.reads("Red house"), "from memory"
    assert not known.reads(" ")
    assert not Vocabulary({"clip_l": tiny.tokenizer(), "t5xxl": of_one_word()}).reads("Red house")


def test_a_word_of_any_tokenizer_is_known() -> None:
    words = pa.array(["cat", "house"])
    assert Vocabulary({"clip_l": of_one_word(), "t5xxl": tiny.tokenizer()}).has(words).to_pylist() == [
        True,
        True,
    ]
    assert Vocabulary({"clip_l": of_one_word()}).has(words).to_pylist() == [True, False]


def test_from_a_folder_and_a_uri(tiny_sd: Path) -> None:
    """Of a URI, the configuration and the tokenizer are read, and no weights."""
    memory = fsspec.filesystem("memory")
    for path in tiny_sd.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            memory.pipe_file(f"/vocabulary/sd/{path.relative_to(tiny_sd)}", path.read_bytes())
    (here,) = vocabulary.load(ModelConfig(path=str(tiny_sd))).values()
    (there,) = vocabulary.load(ModelConfig(path="memory://vocabulary/sd")).values()
    memory.store.clear()
    assert here.get_vocab() == there.get_vocab() == tiny.tokenizer().get_vocab()


def test_all_tokenizers_of_a_family(tiny_sdxl: Path) -> None:
    first, second = vocabulary.load(ModelConfig(path=str(tiny_sdxl))).values()
    assert (first.pad_token, second.pad_token) == ("<|endoftext|>", "!")


@pytest.mark.parametrize("family", ["sd3", "sd3_without_t5", "flux", "sana", "klein"])
def test_tokenizers_of_language_models(family: str, tmp_path: Path) -> None:
    save = {
        "sd3": tiny_flow.save_stable_diffusion_3,
        "sd3_without_t5": lambda folder: tiny_flow.save_stable_diffusion_3(folder, with_t5=False),
        "flux": tiny_flow.save_flux,
        "sana": tiny_flow.save_sana,
        "klein": tiny_flow.save_flux2_klein,
    }[family]
    tokenizers = vocabulary.load(ModelConfig(path=str(save(tmp_path))))
    assert (
        list(tokenizers)
        == {
            "sd3": ["clip_l", "clip_g", "t5xxl"],
            "sd3_without_t5": ["clip_l", "clip_g"],
            "flux": ["clip_l", "t5xxl"],
            "sana": ["gemma"],
            "klein": ["qwen3_4b"],
        }[family]
    )
    known = Vocabulary(tokenizers)
    assert known.has(pa.array(["cat", "Cat", "<x>"])).to_pylist() == [True, True, False]
    assert known.reads("red house")


def test_a_single_file_has_clips_vocabulary(tmp_path: Path) -> None:
    path = single_files.save_sparse(tmp_path / "xl.safetensors", single_files.real("stable-diffusion-xl"))
    first, second = vocabulary.load(ModelConfig(path=str(path))).values()
    assert len(first) == len(second) == 49408
    assert (first.pad_token, second.pad_token) == ("<|endoftext|>", "!")


def test_the_bundled_models_by_name() -> None:
    (tokenizer,) = vocabulary.load(ModelConfig(path="mini-sd")).values()
    assert "ginger</w>" in tokenizer.get_vocab()


def test_a_folder_below_the_users_own(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As configurations have it, where no shell has put the folder in its place."""
    monkeypatch.setenv("HOME", str(tiny_sd.parent))
    (here,) = vocabulary.load(ModelConfig(path=str(tiny_sd))).values()
    (there,) = vocabulary.load(ModelConfig(path=f"~/{tiny_sd.name}")).values()
    assert there.get_vocab() == here.get_vocab()


@pytest.mark.parametrize("path", ["{folder}/none", "memory://me:SECRET@none/such", "nobody/none"])
def test_a_model_that_cannot_be_read(path: str, tmp_path: Path) -> None:
    """Also one of the Hub without a network."""
    with pytest.raises(
        UserError, match=r".* (can't be read: |doesn't exist|isn't in its local cache)"
    ) as caught:
        vocabulary.load(ModelConfig(path=path.format(folder=tmp_path)))
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_files_is_an_error_and_not_a_vocabulary_without_words(
    tiny_sd: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"the tokenizer of the model .* can't be loaded: it has no words"):
        vocabulary.load(ModelConfig(path=str(folder)))
