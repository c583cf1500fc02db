"""Pseudo-words: their token ids and vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from textinv_ray.concepts import word_files
from textinv_ray.concepts.word_files import Word
from textinv_ray.inversion.families.backbone import Backbone


def check_placeholder(backbone: Backbone, placeholder_token: str) -> None:
    """Raises ValueError when the token is empty, has whitespace, or already is a token of an encoder's vocabulary."""
    if not placeholder_token or re.search(r"\s", placeholder_token):
        raise ValueError(f"{placeholder_token!r} can't name a word: it is empty or has whitespace in it")
    if any(encoder.known_as(placeholder_token) for encoder in backbone.encoders):
        raise ValueError(f"{placeholder_token!r} is a word of the model's vocabulary already")


def tokenize(
    backbone: Backbone,
    prompts: Sequence[str],
    words: Mapping[str, int] | None = None,
    *,
    negative: bool = False,
) -> Tensor:
    """Token ids of prompts for all text encoders, padded to int64 (n, L).

    They are those of a diffusers pipeline after `load_textual_inversion`, except that learned tokens are negative.
    words: placeholder token -> number of vectors V. A placeholder becomes V ids; the words' ids count down from -1 in
    the order of `words`, so that id -1 - r stands for row r of their vectors. The tokenizers aren't changed: a prompt
    is split at placeholders, as a tokenizer splits at added tokens, and the pieces are tokenized.
    negative: whether these are negative prompts of classifier-free guidance, which some families treat otherwise.
    Prompts that are too long are truncated, as in diffusers. Raises ValueError when that cuts off a placeholder.
    """
    ids_of: dict[str, list[int]] = {}
    first = 0
    for token, count in (words or {}).items():
        if token.lower() in ids_of:
            raise ValueError(f"two words are called {token!r}: the tokenizer ignores case")
        ids_of[token.lower()] = [-1 - row for row in range(first, first + count)]
        first += count
    # The longest first, so that <cat>2 isn't read as <cat>. Case is ignored, as the tokenizer does. Not in lower case,
    # which for some letters, such as the Turkish dotted I, isn't the same letter to a regular expression.
    names = sorted(map(re.escape, words or {}), key=len, reverse=True)
    pattern = re.compile("(" + "|".join(names) + ")", re.IGNORECASE) if names else None
    lines = []
    for prompt in prompts:
        pieces = pattern.split(prompt) if pattern else [prompt]
        parts = (encoder.tokenize(prompt, pieces, ids_of, negative=negative) for encoder in backbone.encoders)
        lines.append([id_ for part in parts for id_ in part])
    return torch.tensor(lines, dtype=torch.int64)


def shift(input_ids: Tensor, rows: Tensor | int) -> Tensor:
    """Ids whose learned tokens stand for rows that come `rows` later. input_ids: int64 (n, L). rows: a number, or one
    per prompt, (n, 1).
    """
    return torch.where(input_ids < 0, input_ids - rows, input_ids)


def save_learned_embeds(backbone: Backbone, placeholder_token: str, rows: Tensor) -> bytes:
    """The bytes of a learned_embeds.safetensors, see `word_files.store_word`. rows: (V, D), written as float32."""
    parts = backbone.split(rows.detach().to("cpu", torch.float32))
    return word_files.store_word(placeholder_token, {name: part.numpy() for name, part in parts.items()})


def load_learned_embeds(backbone: Backbone, data: bytes) -> tuple[str, Tensor]:
    """The inverse of `save_learned_embeds`: (placeholder token, float32 (V, D)).

    Raises ValueError when it isn't a safetensors file with one word, or the word is of another model.
    """
    words = word_files.parse_words(data, word_files.STORED)
    if len(words) != 1:
        raise ValueError(f"expected one word, found {len(words)}")
    ((token, word),) = words.items()
    return token, rows_of(backbone, word)


def rows_of(backbone: Backbone, word: Word) -> Tensor:
    """The rows of a stored word: float32 (V, D). Raises ValueError for a word of another model."""
    return backbone.join({name: torch.tensor(vectors) for name, vectors in word.items()})


def fill(template: str, placeholder_token: str) -> str:
    """The prompt with the placeholder token (or any text) in place of `{}`."""
    return template.replace("{}", placeholder_token)


def initial_vectors(backbone: Backbone, initializer_token: str, num_vectors: int) -> Tensor:
    """The embeddings of a word or phrase, spread over V vectors: (V, D) in `word_dtype`, on the device.

    Raises ValueError when it gives no token.
    """
    return torch.cat(
        [spread(encoder.token_embeddings(initializer_token), num_vectors) for encoder in backbone.encoders],
        dim=1,
    )


def spread(embeddings: Tensor, num_vectors: int) -> Tensor:
    """n embeddings spread over V vectors: (n, D) -> (V, D).

    For V <= n, each vector is the mean of a run of neighbouring embeddings; for V > n, embeddings repeat in order. So
    a single token is copied V times, as in diffusers' script.
    """
    starts = [index * len(embeddings) // num_vectors for index in range(num_vectors + 1)]
    runs = [embeddings[start : max(stop, start + 1)] for start, stop in pairwise(starts)]
    return torch.stack([run.mean(dim=0) for run in runs])
