"""T5 and Gemma: words wherever they stand, against the plain tokenizers with words as added tokens."""

from __future__ import annotations

import copy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tests.support import tiny, tiny_flow
from textinv_ray.inversion.families.language_encoder import STAND_IN, T5Encoder

TOKENS = tiny_flow.t5_tokenizer()
BARE = tiny_flow.t5_tokenizer()
PLAIN: PreTrainedTokenizerBase = copy.deepcopy(TOKENS)
PLAIN.add_tokens(["<x>", "<cat>"])
T5 = T5Encoder("t5xxl", TOKENS, tiny_flow.t5(TOKENS, 8), length=tiny.MAX_TOKENS)
TEXTS = st.text("a cat,.! <>xyé\n\t'", max_size=8) | st.sampled_from(
    ["a photo of", " the ", "on my house", " "]
)
PIECES = st.lists(st.sampled_from(["<x>", "<cat>"]) | TEXTS, max_size=6)


def plainly(pieces: list[str]) -> list[int]:
    """Ids by the plain tokenizer, with added tokens as their negative ids."""
    learned = {PLAIN.convert_tokens_to_ids("<x>"): [-1], PLAIN.convert_tokens_to_ids("<cat>"): [-2, -3]}
    ids = [learned.get(id_, [id_]) for id_ in PLAIN("".join(pieces), add_special_tokens=False).input_ids]
    return [id_ for part in ids for id_ in part]


def is_safe(pieces: list[str]) -> bool:
    """Whether neighbouring pieces don't make up another placeholder."""
    text = "".join(pieces)
    return all(text.count(word) == pieces.count(word) for word in ("<x>", "<cat>"))


@settings(deadline=None)
@given(PIECES.filter(is_safe))
@example(["<x>"])
@example(["<x>", "<x>"])
@example(["a photo of ", "<x>", ", the ", "<cat>", "s!"])
@example(["(", "<x>", ")"])
def test_ids_are_those_of_the_plain_tokenizer_with_added_tokens(pieces: list[str]) -> None:
    expected = plainly(pieces)
    words = {"<x>": [-1], "<cat>": [-2, -3]}
    room = tiny.MAX_TOKENS - 1
    if any(id_ < 0 for id_ in expected[room:]):
        with pytest.raises(ValueError, match=f"longer than the {room} tokens that .* t5xxl reads"):
            T5.tokenize("", pieces, words)
        return
    expected = [*expected[:room], PLAIN.eos_token_id]
    found = T5.tokenize("", pieces, words)
    assert found == expected + [PLAIN.pad_token_id] * (tiny.MAX_TOKENS - len(expected))


@settings(deadline=None)
@given(TEXTS)
def test_prompts_without_words_are_padded_and_cut_as_transformers_does(text: str) -> None:
    plain = BARE(text * 4, padding="max_length", max_length=tiny.MAX_TOKENS, truncation=True)
    assert T5.tokenize("", [text * 4], {}) == list(plain.input_ids)


def test_the_stand_in_is_no_word() -> None:
    assert T5.tokenize("", [f"a {STAND_IN}"], {"<x>": [-1]}) == T5.tokenize("", ["a �"], {})


def test_words_of_the_vocabulary() -> None:
    assert T5.known_as("cat")
    assert not T5.known_as("<x>")
    assert TOKENS.convert_ids_to_tokens(T5.token_ids("red cat")) == ["▁red", "▁cat"]
    assert T5.nearest_words(T5.token_embeddings("cat"), 1) == ["cat"]
