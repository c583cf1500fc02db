"""CLIP's tokenizer from its merges: known texts give known ids."""

from __future__ import annotations

import pytest

from textinv_ray.model_files.clip_tokenizer import LAYOUTS, clip_merges, clip_vocabulary, load_tokenizer


def test_the_vocabulary() -> None:
    vocabulary = clip_vocabulary(clip_merges())
    assert len(vocabulary) == 49408
    assert vocabulary["!"] == 0
    assert vocabulary["!</w>"] == 256
    assert vocabulary["a</w>"] == 320
    assert vocabulary["<|startoftext|>"] == 49406
    assert vocabulary["<|endoftext|>"] == 49407


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo of a CAT", [320, 1125, 539, 320, 2368]),
        ("a painting in the style of", [320, 3086, 530, 518, 1844, 539]),
        ("hello world!", [3306, 1002, 256]),
        ("", []),
    ],
)
def test_known_texts(text: str, ids: list[int]) -> None:
    tokenizer = load_tokenizer(str(LAYOUTS / "stable-diffusion-1"), "tokenizer")
    assert tokenizer(text).input_ids == [49406, *ids, 49407]
    assert tokenizer.model_max_length == 77


@pytest.mark.parametrize(
    ("layout", "name", "pad"),
    [
        ("stable-diffusion-1", "tokenizer", 49407),
        ("stable-diffusion-2", "tokenizer", 0),
        ("stable-diffusion-2-base", "tokenizer", 0),
        ("stable-diffusion-xl", "tokenizer", 49407),
        ("stable-diffusion-xl", "tokenizer_2", 0),
    ],
)
def test_what_prompts_are_padded_with(layout: str, name: str, pad: int) -> None:
    assert load_tokenizer(str(LAYOUTS / layout), name).pad_token_id == pad
