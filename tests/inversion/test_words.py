from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from textinv_ray.concepts import word_files
from textinv_ray.inversion import words
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion

COUNTS = {"<x>": 1, "<cat-toy>": 3, "sks": 1}
VOCABULARY = len(tiny.tokenizer())


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
    backbone: StableDiffusion, plain: StableDiffusionPipeline, prompt: str
) -> None:
    expected = plain_ids(plain, prompt)
    try:
        ids = words.tokenize(backbone, [prompt], COUNTS)[0].tolist()
    except ValueError:  # too long, and the plain pipeline silently loses a word
        whole = plain.tokenizer(plain.maybe_convert_prompt(prompt, plain.tokenizer)).input_ids
        assert len(whole) > tiny.MAX_TOKENS
        assert max(whole) >= VOCABULARY
    else:
        # The plain pipeline adds the vectors of COUNTS to its tokenizer in the same order
        assert [VOCABULARY - 1 - id_ if id_ < 0 else id_ for id_ in ids] == expected


def test_the_longer_name_wins(backbone: StableDiffusion) -> None:
    ids = words.tokenize(backbone, ["<x>2<x>"], {"<x>": 1, "<x>2": 2})[0]
    assert ids[1:4].tolist() == [-2, -3, -1]


def test_the_tokenizer_is_left_alone(backbone: StableDiffusion) -> None:
    before = len(backbone.tokenizer)
    words.tokenize(backbone, ["<x> <cat-toy>"], COUNTS)
    assert len(backbone.tokenizer) == before


def test_long_prompts_keep_their_end_token(backbone: StableDiffusion) -> None:
    ids = words.tokenize(backbone, ["<x> " + "cat " * 50], {"<x>": 1})
    assert ids.shape == (1, tiny.MAX_TOKENS)
    assert ids[0, 1] == -1
    assert ids[0, -1] == backbone.tokenizer.eos_token_id


@pytest.mark.parametrize("before", [22, 23, 50])
def test_a_word_is_never_cut_off(backbone: StableDiffusion, before: int) -> None:
    with pytest.raises(ValueError, match="would be cut off"):
        words.tokenize(backbone, ["cat " * before + "<x>"], {"<x>": 1})


def test_a_word_may_end_the_longest_prompt(backbone: StableDiffusion) -> None:
    ids = words.tokenize(backbone, ["cat " * 20 + "<x>"], {"<x>": 2})
    assert ids[0, -3:-1].tolist() == [-1, -2]
    with pytest.raises(ValueError, match="would be cut off"):
        words.tokenize(backbone, ["cat " * 20 + "<x>"], {"<x>": 3})


def test_two_words_of_one_name(backbone: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="ignores case"):
        words.tokenize(backbone, ["a <X>"], {"<x>": 1, "<X>": 1})


@pytest.mark.parametrize("placeholder", ["cat", "Cat", "cat</w>", "<|endoftext|>", "", "<a b>"])
def test_names_that_cannot_be_used(backbone: StableDiffusion, placeholder: str) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|can't name"):
        words.check_placeholder(backbone, placeholder)


@pytest.mark.parametrize("placeholder", ["<cat>", "sks", "cat-toy", "<İnek>", "<Straße>", "<ΣΑΣ>", "<ǰ>"])
def test_names_that_can(backbone: StableDiffusion, placeholder: str) -> None:
    """They are found in their prompts, whatever their letters become in lower case."""
    words.check_placeholder(backbone, placeholder)
    (ids,) = words.tokenize(backbone, [f"a photo of {placeholder} on a beach"], {placeholder: 2})
    assert ids[ids < 0].tolist() == [-1, -2]


def embeddings(backbone: StableDiffusion, text: str) -> torch.Tensor:
    ids = backbone.tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in text.split()])
    return backbone.text_encoder.get_input_embeddings().weight[ids]


def test_initial_vectors_of_a_word_are_copies(backbone: StableDiffusion) -> None:
    assert torch.equal(words.initial_vectors(backbone, "Cat", 1), embeddings(backbone, "cat"))
    assert torch.equal(words.initial_vectors(backbone, "cat", 3), embeddings(backbone, "cat cat cat"))


def test_initial_vectors_of_a_phrase(backbone: StableDiffusion) -> None:
    red, cat, house = embeddings(backbone, "red cat house")
    phrase = "red cat house"
    torch.testing.assert_close(words.initial_vectors(backbone, phrase, 1), ((red + cat + house) / 3)[None])
    torch.testing.assert_close(
        words.initial_vectors(backbone, phrase, 2), torch.stack([red, (cat + house) / 2])
    )
    assert torch.equal(words.initial_vectors(backbone, phrase, 3), torch.stack([red, cat, house]))
    assert torch.equal(words.initial_vectors(backbone, phrase, 5), torch.stack([red, red, cat, cat, house]))


@pytest.mark.parametrize("initializer", ["", "  \n"])
def test_an_initializer_without_a_token(backbone: StableDiffusion, initializer: str) -> None:
    with pytest.raises(ValueError, match="gives no token"):
        words.initial_vectors(backbone, initializer, 1)


def test_learned_embeds_round_trip(backbone: StableDiffusion) -> None:
    vectors = torch.randn(2, 32, dtype=torch.float64)
    data = words.save_learned_embeds(backbone, "<x>", vectors)
    token, loaded = words.load_learned_embeds(backbone, data)
    assert (token, loaded.dtype) == ("<x>", torch.float32)
    assert torch.equal(loaded, vectors.float())


@pytest.mark.parametrize("cut", [0, 1, 60])
def test_files_that_are_not_learned_embeds(backbone: StableDiffusion, cut: int) -> None:
    whole = words.save_learned_embeds(backbone, "<x>", torch.ones(1, 32))
    for data in (whole[: len(whole) - cut] if cut else b"", b"rubbish" * 9):
        with pytest.raises(ValueError, match="not a safetensors file"):
            words.load_learned_embeds(backbone, data)


def test_learned_embeds_of_another_model(backbone: StableDiffusion) -> None:
    other = word_files.store_word("<x>", {"clip_l": np.ones((1, 8), np.float32)})
    message = r"has vectors for clip_l \(8\), this Stable Diffusion .* model takes clip_l \(32\)"
    with pytest.raises(ValueError, match=message):
        words.load_learned_embeds(backbone, other)
    both = {"clip_l": np.ones((1, 32), np.float32), "clip_g": np.ones((1, 32), np.float32)}
    with pytest.raises(ValueError, match=r"has vectors for clip_l \(32\) and clip_g \(32\), this"):
        words.load_learned_embeds(backbone, word_files.store_word("<x>", both))


def test_learned_embeds_are_one_word(backbone: StableDiffusion) -> None:
    two = safetensors.torch.save({"<a>": torch.ones(1, 32), "<b>": torch.ones(1, 32)})
    with pytest.raises(ValueError, match="expected one word, found 2"):
        words.load_learned_embeds(backbone, two)


def test_shifted_ids(backbone: StableDiffusion) -> None:
    """Learned tokens stand for later rows; all others stay."""
    ids = words.tokenize(backbone, ["a <x> cat", "<y>"], {"<x>": 2, "<y>": 1})
    moved = words.shift(ids, torch.tensor([[3], [10]]))
    assert moved[0, 2:4].tolist() == [-4, -5]
    assert moved[1, 1] == -13
    assert torch.equal(moved[ids >= 0], ids[ids >= 0])
