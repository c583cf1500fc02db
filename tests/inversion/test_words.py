from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from textinv_ray.inversion import words
from textinv_ray.inversion.backbone import Backbone

COUNTS = {"<x>": 1, "<cat-toy>": 3, "sks": 1}


@pytest.fixture(scope="module")
def plain(tiny_sd: Path) -> StableDiffusionPipeline:
    """A plain pipeline with the words of COUNTS."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    for token, count in COUNTS.items():
        pipeline.load_textual_inversion({token: torch.randn(count, 32)})
    return pipeline


def plain_ids(pipeline: StableDiffusionPipeline, prompt: str) -> list[int]:
    prompt = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
    return pipeline.tokenizer(prompt, padding="max_length", truncation=True).input_ids


pieces = st.sampled_from(
    [*COUNTS, "<X>", "a photo", "cat", " ", "  ", "'s", ",", "<", ">", "é", "2", "\n", "!!", "🐈"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=8).map("".join))
def test_prompts_are_read_as_a_plain_pipeline_reads_them(
    backbone: Backbone, plain: StableDiffusionPipeline, prompt: str
) -> None:
    expected = plain_ids(plain, prompt)
    try:
        ids = words.tokenize(backbone, [prompt], COUNTS)[0].tolist()
    except ValueError:  # too long, and the plain pipeline silently loses a word
        whole = plain.tokenizer(plain.maybe_convert_prompt(prompt, plain.tokenizer)).input_ids
        assert len(whole) > tiny.MAX_TOKENS
        assert max(whole) >= backbone.vocabulary_size
    else:
        assert ids == expected


def test_the_longer_name_wins(backbone: Backbone) -> None:
    ids = words.tokenize(backbone, ["<x>2<x>"], {"<x>": 1, "<x>2": 2})[0] - backbone.vocabulary_size
    assert ids[1:4].tolist() == [1, 2, 0]


def test_the_tokenizer_is_left_alone(backbone: Backbone) -> None:
    before = len(backbone.tokenizer)
    words.tokenize(backbone, ["<x> <cat-toy>"], COUNTS)
    assert len(backbone.tokenizer) == before


def test_long_prompts_keep_their_end_token(backbone: Backbone) -> None:
    ids = words.tokenize(backbone, ["<x> " + "cat " * 50], {"<x>": 1})
    assert ids.shape == (1, tiny.MAX_TOKENS)
    assert ids[0, 1] == backbone.vocabulary_size
    assert ids[0, -1] == backbone.tokenizer.eos_token_id


@pytest.mark.parametrize("before", [22, 23, 50])
def test_a_word_is_never_cut_off(backbone: Backbone, before: int) -> None:
    with pytest.raises(ValueError, match="would be cut off"):
        words.tokenize(backbone, ["cat " * before + "<x>"], {"<x>": 1})


def test_a_word_may_end_the_longest_prompt(backbone: Backbone) -> None:
    ids = words.tokenize(backbone, ["cat " * 20 + "<x>"], {"<x>": 2})
    assert ids[0, -3:-1].tolist() == [backbone.vocabulary_size, backbone.vocabulary_size + 1]
    with pytest.raises(ValueError, match="would be cut off"):
        words.tokenize(backbone, ["cat " * 20 + "<x>"], {"<x>": 3})


def test_two_words_of_one_name(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="ignores case"):
        words.tokenize(backbone, ["a <X>"], {"<x>": 1, "<X>": 1})


@pytest.mark.parametrize("placeholder", ["cat", "Cat", "cat</w>", "<|endoftext|>", "", "<a b>"])
def test_names_that_cannot_be_used(backbone: Backbone, placeholder: str) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|can't name"):
        words.check_placeholder(backbone.tokenizer, placeholder)


@pytest.mark.parametrize("placeholder", ["<cat>", "sks", "cat-toy"])
def test_names_that_can(backbone: Backbone, placeholder: str) -> None:
    words.check_placeholder(backbone.tokenizer, placeholder)


def embeddings(backbone: Backbone, text: str) -> torch.Tensor:
    ids = backbone.tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in text.split()])
    return backbone.text_encoder.get_input_embeddings().weight[ids]


def test_initial_vectors_of_a_word_are_copies(backbone: Backbone) -> None:
    assert torch.equal(words.initial_vectors(backbone, "Cat", 1), embeddings(backbone, "cat"))
    assert torch.equal(words.initial_vectors(backbone, "cat", 3), embeddings(backbone, "cat cat cat"))


def test_initial_vectors_of_a_phrase(backbone: Backbone) -> None:
    red, cat, house = embeddings(backbone, "red cat house")
    phrase = "red cat house"
    torch.testing.assert_close(words.initial_vectors(backbone, phrase, 1), ((red + cat + house) / 3)[None])
    torch.testing.assert_close(
        words.initial_vectors(backbone, phrase, 2), torch.stack([red, (cat + house) / 2])
    )
    assert torch.equal(words.initial_vectors(backbone, phrase, 3), torch.stack([red, cat, house]))
    assert torch.equal(words.initial_vectors(backbone, phrase, 5), torch.stack([red, red, cat, cat, house]))


@pytest.mark.parametrize("initializer", ["", "  \n"])
def test_an_initializer_without_a_token(backbone: Backbone, initializer: str) -> None:
    with pytest.raises(ValueError, match="gives no token"):
        words.initial_vectors(backbone, initializer, 1)


def test_learned_embeds_round_trip() -> None:
    vectors = torch.randn(2, 32, dtype=torch.float64)
    token, loaded = words.load_learned_embeds(words.save_learned_embeds("<x>", vectors))
    assert (token, loaded.dtype) == ("<x>", torch.float32)
    assert torch.equal(loaded, vectors.float())


@pytest.mark.parametrize(
    "data", [b"", b"rubbish" * 9, words.save_learned_embeds("<x>", torch.ones(1, 2))[:-1]]
)
def test_files_that_are_not_learned_embeds(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a safetensors file"):
        words.load_learned_embeds(data)
