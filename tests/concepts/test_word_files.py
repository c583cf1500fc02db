"""Files of words: what each program reads from them, what ours reads of each, and that pickles are never read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tensors import stored
from textinv_ray.concepts import word_files
from textinv_ray.concepts.word_files import Word

SDXL = {"clip_l": 768, "clip_g": 1280}
shapes = st.tuples(st.integers(1, 4), st.sampled_from([8, 768, 1024]))


def random_word(count: int, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(count, size)).astype(np.float32) for name, size in sizes.items()}


def encoder_of(dim: int) -> str:
    return {1024: "clip_h", 2560: "qwen3_4b"}.get(dim, "clip_l")


def assert_equal(found: Word, expected: Mapping[str, np.ndarray]) -> None:
    """To the bit, with the encoders in the same order."""
    assert list(found) == list(expected)
    for name, vectors in expected.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], vectors)


def a1111_reads(data: bytes) -> torch.Tensor:
    """The rule of the webui's `create_embedding_from_data` for a safetensors file that isn't SDXL's."""
    tensors = safetensors.torch.load(data)
    assert "string_to_param" not in tensors
    assert "clip_g" not in tensors
    assert len(tensors) == 1, "embedding file has multiple terms in it"
    vectors = next(iter(tensors.values()))
    return (vectors[None] if vectors.ndim == 1 else vectors).float()


def comfyui_reads(data: bytes, embedding_key: str) -> torch.Tensor:
    """The rule of ComfyUI's `load_embed`: the encoder's own key, else the first tensor."""
    tensors = safetensors.torch.load(data)
    return tensors.get(embedding_key, next(iter(tensors.values())))


# --- One encoder -------------------------------------------------------------------------------------------


@given(shapes, st.sampled_from(word_files.FORMATS), st.sampled_from([np.float32, np.float16]))
def test_every_format_comes_back_to_the_bit(
    shape: tuple[int, int], format_name: str, dtype: type[np.floating]
) -> None:
    count, dim = shape
    vectors = random_word(count, {"x": dim})["x"].astype(dtype)
    files = word_files.write_word(format_name, "<cat>", {encoder_of(dim): vectors})
    assert list(files) == [""]
    ((token, found),) = word_files.parse_words(files[""], "cat.safetensors").items()
    assert token == "<cat>"
    assert_equal(found, {encoder_of(dim): vectors.astype(np.float32)})


@given(shapes, st.sampled_from(word_files.FORMATS))
def test_the_user_interfaces_find_all_vectors(shape: tuple[int, int], format_name: str) -> None:
    count, dim = shape
    word = random_word(count, {encoder_of(dim): dim})
    vectors = torch.tensor(word[encoder_of(dim)])
    data = word_files.write_word(format_name, "<cat>", word)[""]
    assert torch.equal(a1111_reads(data), vectors)
    for encoder in ("clip_l", "clip_h"):
        found = comfyui_reads(data, encoder)
        assert torch.equal(found, vectors)
        assert found.shape[-1] == dim, "ComfyUI ignores rows of another size"


@pytest.mark.parametrize(
    ("format_name", "dim", "key"),
    [
        ("diffusers", 768, "<cat>"),
        ("a1111", 768, "emb_params"),
        ("comfyui", 768, "clip_l"),
        ("comfyui", 1024, "clip_h"),
        ("comfyui", 2560, "qwen3_4b"),
        ("comfyui", 8, "emb_params"),
    ],
)
def test_keys(format_name: str, dim: int, key: str) -> None:
    word = {encoder_of(dim): np.ones((2, dim), np.float32)}
    tensors = safetensors.torch.load(word_files.write_word(format_name, "<cat>", word)[""])
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        key: ((2, dim), torch.float32)
    }


def test_plain_diffusers_loads_every_vector(tiny_sd: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    path = tmp_path / "cat.safetensors"
    vectors = np.arange(96, dtype=np.float32).reshape(3, 32)
    path.write_bytes(word_files.write_word("diffusers", "<x>", {"clip_l": vectors})[""])
    pipeline.load_textual_inversion(str(path))
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<x>", "<x>_1", "<x>_2"])
    assert min(ids) >= len(pipeline.tokenizer) - 3
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], torch.tensor(vectors))


def test_what_a_prompt_calls_it() -> None:
    assert [word_files.in_prompt(name, "<cat>", "my-cat") for name in word_files.FORMATS] == [
        "<cat>",
        "my-cat",
        "embedding:my-cat",
    ]


@pytest.mark.parametrize("sizes", [{"clip_l": 2}, SDXL])
def test_no_such_format(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="known: diffusers, a1111, comfyui"):
        word_files.write_word("invokeai", "<x>", random_word(1, sizes))


@pytest.mark.parametrize("key", ["emb_params", "emp_params", "*", "clip_l"])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_words_without_a_name_have_the_files(tmp_path: Path, key: str, rows: int) -> None:
    """A1111's, OneTrainer's, the original implementation's and ComfyUI's key; one vector may have no row."""
    path = tmp_path / "blob.safetensors"
    vectors = torch.randn(rows, 8) if rows else torch.randn(8)
    path.write_bytes(stored({key: vectors}))
    ((token, found),) = word_files.read_words(path).items()
    assert token == "<blob>"
    assert_equal(found, {"clip_l": vectors.reshape(-1, 8).numpy()})


@pytest.mark.parametrize(
    ("dim", "encoder"),
    [
        (768, "clip_l"),
        (1024, "clip_h"),
        (1280, "clip_g"),
        (2560, "qwen3_4b"),
        (4096, "t5xxl"),
        (32, "clip_l"),
    ],
)
@pytest.mark.parametrize("key", ["<x>", "emb_params"])
def test_the_size_tells_the_encoder_where_the_key_does_not(dim: int, encoder: str, key: str) -> None:
    (found,) = word_files.parse_words(stored({key: torch.ones(2, dim)}), "x.safetensors").values()
    assert list(found) == [encoder]


@pytest.mark.parametrize(
    "key", ["clip_l", "clip_h", "clip_g", "t5xxl", "t5", "gemma", "qwen3_4b", "qwen3_8b"]
)
def test_the_key_tells_the_encoder_whatever_the_size(key: str) -> None:
    (found,) = word_files.parse_words(stored({key: torch.ones(2, 768)}), "x.safetensors").values()
    assert list(found) == ["t5xxl" if key == "t5" else key]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_is_read(dtype: torch.dtype) -> None:
    """Numbers of all magnitudes that the type has, exactly."""
    vectors = torch.tensor([[1.0, -2.5, 0.0, 6e-5, 65504.0, 1 / 3]]).to(dtype)
    found = word_files.parse_words(stored({"<x>": vectors}), "x.safetensors")["<x>"]
    assert_equal(found, {"clip_l": vectors.float().numpy()})


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=30))
def test_bfloat16_is_read_as_torch_reads_it(bits: list[int]) -> None:
    numbers = torch.tensor(np.array(bits, np.uint16).view(np.int16)).view(torch.bfloat16)
    data = stored({"<x>": numbers[None]})
    if numbers.isfinite().all():
        found = word_files.parse_words(data, "x.safetensors")["<x>"]["clip_l"]
        assert np.array_equal(found, numbers[None].float().numpy())
    else:
        with pytest.raises(ValueError, match="not finite"):
            word_files.parse_words(data, "x.safetensors")


def test_several_words_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    path.write_bytes(stored({"<a>": torch.ones(8), "<b>": torch.ones(2, 8)}))
    assert {token: word["clip_l"].shape for token, word in word_files.read_words(path).items()} == {
        "<a>": (1, 8),
        "<b>": (2, 8),
    }


# --- Two encoders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["a1111", "comfyui"])
def test_sdxl_words_of_user_interfaces(format_name: str) -> None:
    """Both read `clip_l` and `clip_g` of one file (the webui as "SDXL"), and InvokeAI tells SDXL by these keys."""
    word = random_word(3, SDXL)
    files = word_files.write_word(format_name, "<cat>", word)
    assert list(files) == [""]
    tensors = safetensors.torch.load(files[""])
    assert {key: tuple(vectors.shape) for key, vectors in tensors.items()} == {
        "clip_l": (3, 768),
        "clip_g": (3, 1280),
    }
    for encoder, vectors in word.items():
        assert torch.equal(comfyui_reads(files[""], encoder), torch.tensor(vectors))
    ((token, found),) = word_files.parse_words(files[""], "cat.safetensors").items()
    assert token == "<cat>"
    assert_equal(found, word)


def test_diffusers_has_a_file_for_each_encoder(tmp_path: Path) -> None:
    word = random_word(2, SDXL)
    files = word_files.write_word("diffusers", "<x>", word)
    assert list(files) == ["", "_2"]
    for suffix, vectors in zip(files, word.values(), strict=True):
        (tmp_path / f"cat{suffix}.safetensors").write_bytes(files[suffix])
        ((key, tensor),) = safetensors.torch.load(files[suffix]).items()
        assert key == "<x>", "diffusers loads each by itself, under its key"
        assert torch.equal(tensor, torch.tensor(vectors))
    ((token, found),) = word_files.read_words(tmp_path / "cat.safetensors").items()
    assert token == "<x>"
    assert_equal(found, word)
    (tmp_path / "swapped.safetensors").write_bytes(files["_2"])
    (tmp_path / "swapped_2.safetensors").write_bytes(files[""])
    assert_equal(word_files.read_words(tmp_path / "swapped.safetensors")["<x>"], word)
    ((_, second),) = word_files.read_words(tmp_path / "cat_2.safetensors").items()
    assert_equal(second, {"clip_g": word["clip_g"]})
    (tmp_path / "cat_2.safetensors").unlink()
    ((_, first),) = word_files.read_words(tmp_path / "cat.safetensors").items()
    assert_equal(first, {"clip_l": word["clip_l"]})


def test_kohyas_words() -> None:
    """Its SDXL script writes `clip_g` before `clip_l`, in half precision and with metadata of its own."""
    word = random_word(2, {"clip_g": 1280, "clip_l": 768})
    half = {name: torch.tensor(vectors).half() for name, vectors in word.items()}
    data = stored(half, {"modelspec.title": "cat", "ss_training_comment": "x"})
    ((token, found),) = word_files.parse_words(data, "cat.safetensors").items()
    assert token == "<cat>"
    assert list(found) == ["clip_l", "clip_g"], "in the order of the models, whatever the file's is"
    for name, vectors in half.items():
        assert np.array_equal(found[name], vectors.float().numpy())


def test_a_diffusers_word_beside_a_file_of_another_word() -> None:
    """A second file counts for the words that it has, with as many vectors, and of another encoder."""
    first = stored({"<a>": torch.ones(1, 768), "<b>": torch.ones(2, 768), "<c>": torch.ones(1, 768)})
    second = stored({"<a>": torch.ones(1, 1280), "<b>": torch.ones(1, 1280), "<c>": torch.ones(1, 768)})
    found = word_files.parse_words(first, "x.safetensors", second)
    assert {token: list(word) for token, word in found.items()} == {
        "<a>": ["clip_l", "clip_g"],
        "<b>": ["clip_l"],
        "<c>": ["clip_l"],
    }


def test_t5_goes_by_two_names() -> None:
    tensors = {"clip_l": torch.ones(1, 768), "t5": torch.full((1, 4096), 2.0)}
    (found,) = word_files.parse_words(stored(tensors), "x.safetensors").values()
    assert list(found) == ["clip_l", "t5xxl"]
    assert (found["t5xxl"] == 2).all()


def test_the_second_files_name() -> None:
    assert word_files.second_file("learned_embeds.safetensors") == "learned_embeds_2.safetensors"
    assert word_files.second_file("my.cat.safetensors") == "my.cat_2.safetensors"


# --- A concept's own file ----------------------------------------------------------------------------------

tokens = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=12).map("<{}>".format)


@given(token=tokens, count=st.integers(1, 3), dim=st.sampled_from([4, 768, 1024]))
def test_a_stored_word_comes_back(token: str, count: int, dim: int) -> None:
    word = random_word(count, {encoder_of(dim): dim})
    data = word_files.store_word(token, word)
    ((found_token, found),) = word_files.parse_words(data, word_files.STORED).items()
    assert found_token == token
    assert_equal(found, word)
    assert torch.equal(safetensors.torch.load(data)[token], torch.tensor(word[encoder_of(dim)]))


@given(
    token=tokens,
    count=st.integers(1, 3),
    sizes=st.sampled_from([SDXL, {"clip_l": 4, "clip_g": 6}, {"qwen3_8b": 4096}]),
)
def test_a_stored_word_with_names_of_encoders_comes_back(
    token: str, count: int, sizes: dict[str, int]
) -> None:
    """Of several encoders, and of Qwen 3 8B, whose vectors have the size of T5's."""
    word = random_word(count, sizes)
    data = word_files.store_word(token, word)
    assert word_files.store_word(token, word) == data
    ((found_token, found),) = word_files.parse_words(data, word_files.STORED).items()
    assert found_token == token
    assert_equal(found, word)
    assert set(safetensors.torch.load(data)) == set(sizes), "what A1111 and ComfyUI read"


@pytest.mark.parametrize(
    "note", ["", "rubbish", "[]", "null", '{"placeholder_token": 7}', '{"placeholder_token": ""}', "[" * 9999]
)
def test_a_note_that_says_no_name(note: str) -> None:
    word = random_word(1, SDXL)
    data = stored({name: torch.tensor(vectors) for name, vectors in word.items()}, {"textinv_ray": note})
    assert list(word_files.parse_words(data, "cat.safetensors")) == ["<cat>"]


# --- Refusals ----------------------------------------------------------------------------------------------
