"""Pseudo-words: token ids beyond the vocabulary, initial vectors, and the learned_embeds.safetensors file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTokenizer

from textinv_ray.inversion.backbone import Backbone


def check_placeholder(tokenizer: CLIPTokenizer, placeholder_token: str) -> None:
    """Raises ValueError when the token is empty, has whitespace, or already is a token of the vocabulary."""
    if not placeholder_token or re.search(r"\s", placeholder_token):
        raise ValueError(f"{placeholder_token!r} can't name a word: it is empty or has whitespace in it")
    for known in (placeholder_token, placeholder_token.lower() + "</w>"):
        # convert_tokens_to_ids gives unknown tokens the id of the unknown token
        if tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(known)) == known:
            raise ValueError(f"{placeholder_token!r} is a word of the model's vocabulary already")


def tokenize(backbone: Backbone, prompts: Sequence[str], words: Mapping[str, int] | None = None) -> Tensor:
    """Token ids of prompts, padded to int64 (n, L): those of a diffusers pipeline after `load_textual_inversion`.

    words: placeholder token -> number of vectors V. A placeholder becomes V ids; the words' ids count up from
    `vocabulary_size` in the order of `words`. The tokenizer isn't changed: the prompt is split at placeholders, as
    the tokenizer splits at added tokens, and the pieces are tokenized.
    Prompts longer than L are truncated, as in diffusers. Raises ValueError when that cuts off a placeholder.
    """
    tokenizer, ids_of = backbone.tokenizer, {}
    first = backbone.vocabulary_size
    for token, count in (words or {}).items():
        if token.lower() in ids_of:
            raise ValueError(f"two words are called {token!r}: the tokenizer ignores case")
        ids_of[token.lower()] = list(range(first, first + count))
        first += count
    # The longest first, so that <cat>2 isn't read as <cat>. Case is ignored, as the tokenizer does.
    names = sorted((re.escape(token) for token in ids_of), key=len, reverse=True)
    pattern = re.compile("(" + "|".join(names) + ")", re.IGNORECASE) if names else None
    room = backbone.max_tokens - 2
    lines = []
    for prompt in prompts:
        ids: list[int] = []
        for piece in pattern.split(prompt) if pattern else [prompt]:
            if piece.lower() in ids_of:
                ids += ids_of[piece.lower()]
                if len(ids) > room:
                    raise ValueError(
                        f"the prompt {prompt!r} is longer than the {room} tokens that the model reads, "
                        f"so {piece!r} would be cut off: shorten the prompt"
                    )
            elif piece:
                ids += tokenizer(piece, add_special_tokens=False).input_ids
        ids = [tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id]
        lines.append(ids + [tokenizer.pad_token_id] * (backbone.max_tokens - len(ids)))
    return torch.tensor(lines, dtype=torch.int64)


def fill(template: str, placeholder_token: str) -> str:
    """The prompt with the placeholder token (or any text) in place of `{}`."""
    return template.replace("{}", placeholder_token)


def initial_vectors(backbone: Backbone, initializer_token: str, num_vectors: int) -> Tensor:
    """The embeddings of a word or phrase, spread over V vectors: (V, D) in `word_dtype`, on the device.

    Raises ValueError when it gives no token.
    """
    return spread(token_embeddings(backbone, initializer_token), num_vectors)


def token_embeddings(backbone: Backbone, initializer_token: str) -> Tensor:
    """The frozen embedding of each token of a word or phrase: (tokens, D) in `word_dtype`, on the device.

    Raises ValueError when it gives no token.
    """
    ids = backbone.tokenizer(initializer_token, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"the initializer {initializer_token!r} gives no token of the model's vocabulary")
    table = backbone.text_encoder.get_input_embeddings().weight
    return table[torch.tensor(ids, device=table.device)].to(backbone.word_dtype)


def spread(embeddings: Tensor, num_vectors: int) -> Tensor:
    """n embeddings spread over V vectors: (n, D) -> (V, D).

    For V <= n, each vector is the mean of a run of neighbouring embeddings; for V > n, embeddings repeat in order. So
    a single token is copied V times, as in diffusers' script.
    """
    starts = [index * len(embeddings) // num_vectors for index in range(num_vectors + 1)]
    runs = [embeddings[start : max(stop, start + 1)] for start, stop in pairwise(starts)]
    return torch.stack([run.mean(dim=0) for run in runs])


def save_learned_embeds(placeholder_token: str, vectors: Tensor) -> bytes:
    """The bytes of a learned_embeds.safetensors: one float32 tensor (V, D) whose key is the placeholder token.

    diffusers' `load_textual_inversion` reads it as the tokens `<x>`, `<x>_1`, ...; A1111 and ComfyUI read it, too.
    """
    tensor = vectors.detach().to("cpu", torch.float32).contiguous()
    return safetensors.torch.save({placeholder_token: tensor}, metadata={"format": "pt"})


def load_learned_embeds(data: bytes) -> tuple[str, Tensor]:
    """The inverse of `save_learned_embeds`: (placeholder token, float32 (V, D)).

    Raises ValueError when it isn't a safetensors file with one tensor.
    """
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    if len(tensors) != 1:
        raise ValueError(f"expected one word, found {len(tensors)} tensors")
    ((token, vectors),) = tensors.items()
    return token, torch.atleast_2d(vectors.to(torch.float32))
