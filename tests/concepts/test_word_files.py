"""Files of words: what each program reads from them, and that pickles are never read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.inversion import formats

shapes = st.tuples(st.integers(1, 4), st.sampled_from([8, 768, 1024]))


def a1111_reads(data: bytes) -> torch.Tensor:
    """The rule of the webui's `create_embedding_from_data` for a safetensors file that isn't SDXL's."""
    tensors = safetensors.torch.load(data)
    assert "string_to_param" not in tensors
    assert len(tensors) == 1, "embedding file has multiple terms in it"
    vectors = next(iter(tensors.values()))
    return (vectors[None] if vectors.ndim == 1 else vectors).float()


def comfyui_reads(data: bytes, embedding_key: str) -> torch.Tensor:
    """The rule of ComfyUI's `load_embed`: the encoder's own key, else the first tensor."""
    tensors = safetensors.torch.load(data)
    return tensors.get(embedding_key, next(iter(tensors.values())))


@given(shapes, st.sampled_from(formats.FORMATS), st.sampled_from([torch.float32, torch.float16]))
def test_every_format_comes_back_to_the_bit(
    shape: tuple[int, int], format_name: str, dtype: torch.dtype
) -> None:
    vectors = torch.randn(shape, dtype=dtype)
    data = formats.write_word(format_name, "<cat>", vectors)
    ((token, found),) = formats.parse_words(data, "cat.safetensors").items()
    assert token == "<cat>"
    assert found.dtype == torch.float32
    assert torch.equal(found, vectors.float())


@given(shapes, st.sampled_from(formats.FORMATS))
def test_the_user_interfaces_find_all_vectors(shape: tuple[int, int], format_name: str) -> None:
    vectors = torch.randn(shape)
    data = formats.write_word(format_name, "<cat>", vectors)
    assert torch.equal(a1111_reads(data), vectors)
    for encoder in ("clip_l", "clip_h"):
        found = comfyui_reads(data, encoder)
        assert torch.equal(found, vectors)
        assert found.shape[-1] == shape[-1], "ComfyUI ignores rows of another size"


@pytest.mark.parametrize(
    ("format_name", "dim", "key"),
    [
        ("diffusers", 768, "<cat>"),
        ("a1111", 768, "emb_params"),
        ("comfyui", 768, "clip_l"),
        ("comfyui", 1024, "clip_h"),
        ("comfyui", 8, "emb_params"),
    ],
)
def test_keys(format_name: str, dim: int, key: str) -> None:
    tensors = safetensors.torch.load(formats.write_word(format_name, "<cat>", torch.ones(2, dim)))
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        key: ((2, dim), torch.float32)
    }


def test_plain_diffusers_loads_every_vector(tiny_sd: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    path = tmp_path / "cat.safetensors"
    path.write_bytes(formats.write_word("diffusers", "<x>", torch.arange(96.0).reshape(3, 32)))
    pipeline.load_textual_inversion(str(path))
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<x>", "<x>_1", "<x>_2"])
    assert min(ids) >= len(pipeline.tokenizer) - 3
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], torch.arange(96.0).reshape(3, 32))


def test_what_a_prompt_calls_it() -> None:
    assert [formats.in_prompt(name, "<cat>", "my-cat") for name in formats.FORMATS] == [
        "<cat>",
        "my-cat",
        "embedding:my-cat",
    ]


def test_no_such_format() -> None:
    with pytest.raises(ValueError, match="known: diffusers, a1111, comfyui"):
        formats.write_word("invokeai", "<x>", torch.ones(1, 2))


def test_one_vector_without_a_row(tmp_path: Path) -> None:
    path = tmp_path / "blob.safetensors"
    safetensors.torch.save_file({"emb_params": torch.ones(8)}, path)
    assert formats.read_words(path)["<blob>"].shape == (1, 8)


def test_several_words_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    safetensors.torch.save_file({"<a>": torch.ones(8), "<b>": torch.ones(2, 8)}, path)
    assert {token: tuple(v.shape) for token, v in formats.read_words(path).items()} == {
        "<a>": (1, 8),
        "<b>": (2, 8),
    }


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
        formats.read_words(tmp_path / name)
    assert not (tmp_path / "opened").exists()


header = json.dumps({}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"rubbish" * 9, "is not a safetensors file"),
        (struct.pack("<Q", len(header)) + header, "has no word in it"),
        (safetensors.torch.save({"x": torch.ones(1, 2, 3)}), r"not a file of words: 'x' is \(1, 2, 3\)"),
        (safetensors.torch.save({"x": torch.ones(1, 2, dtype=torch.int64)}), "of torch.int64"),
        (safetensors.torch.save({"x": torch.ones(0, 2)}), "not a file of words"),
        (safetensors.torch.save({"x": torch.tensor([[1.0, float("nan")]])}), "not finite"),
        (safetensors.torch.save({"clip_l": torch.ones(1, 2), "clip_g": torch.ones(1, 3)}), "SDXL"),
        (safetensors.torch.save({"clip_l": torch.ones(1, 2), "<x>": torch.ones(1, 2)}), "several nameless"),
    ],
)
def test_what_is_not_a_file_of_words(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        formats.read_words(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be read: No such file"):
        formats.read_words(tmp_path / "none.safetensors")
