"""Pseudo-words: prompts with ids beyond the vocabulary, initial vectors, and the file that others read."""

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
    """Raises ValueError when the name is empty, has spaces, or is a word of the vocabulary already."""
    if not placeholder_token or re.search(r"\s", placeholder_token):
        raise ValueError(f"{placeholder_token!r} can't name a word: it is empty or has spaces in it")
    for known in (placeholder_token, placeholder_token.lower() + "</w>"):
        # Unknown tokens get the id of another token.
        if tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(known)) == known:
            raise ValueError(f"{placeholder_token!r} is a word of the model's vocabulary already")


def tokenize(backbone: Backbone, prompts: Sequence[str], words: Mapping[str, int] | None = None) -> Tensor:
    """Ids of prompts, padded to int64 (n, L), the same as a plain pipeline's after `load_textual_inversion`.

    words: placeholder token -> number of vectors. Their ids are `vocabulary_size`, `vocabulary_size` + 1, ...
    in this order; a placeholder stands for all its vectors. The tokenizer is left as it is: the prompt is
    cut at the placeholders, as its own handling of added tokens does, and the pieces are tokenised.
    Prompts that are too long lose their end, as in diffusers. Raises ValueError when that hits a placeholder.
    """
    tokenizer, ids_of = backbone.tokenizer, {}
    first = backbone.vocabulary_size
    for token, count in (words or {}).items():
        if token.lower() in ids_of:
            raise ValueError(f"two words are called {token!r}: the tokenizer ignores case")
        ids_of[token.lower()] = list(range(first, first + count))
        first += count
    # The longest first, so that <cat> doesn't hide <cat>2. The tokenizer ignores case, placeholders' too.
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
    """The prompt with the word in place of `{}`."""
    return template.replace("{}", placeholder_token)


def initial_vectors(backbone: Backbone, initializer_token: str, num_vectors: int) -> Tensor:
    """The embeddings of a word or phrase as (V, D) in `word_dtype`, on the device. Raises ValueError."""
    return spread(token_embeddings(backbone, initializer_token), num_vectors)


def token_embeddings(backbone: Backbone, initializer_token: str) -> Tensor:
    """A row for each token of a word or phrase: (tokens, D) in `word_dtype`, on the device.

    Raises ValueError when there is no token.
    """
    ids = backbone.tokenizer(initializer_token, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"the initializer {initializer_token!r} gives no token of the model's vocabulary")
    table = backbone.text_encoder.get_input_embeddings().weight
    return table[torch.tensor(ids, device=table.device)].to(backbone.word_dtype)


def spread(embeddings: Tensor, num_vectors: int) -> Tensor:
    """(n, D) as (V, D). With fewer vectors, each is the mean of a run of them; with more, they repeat in order.

    So a single token is copied V times, as diffusers' script does.
    """
    starts = [index * len(embeddings) // num_vectors for index in range(num_vectors + 1)]
    runs = [embeddings[start : max(stop, start + 1)] for start, stop in pairwise(starts)]
    return torch.stack([run.mean(dim=0) for run in runs])


def save_learned_embeds(placeholder_token: str, vectors: Tensor) -> bytes:
    """A `learned_embeds.safetensors`: one tensor (V, D) under the placeholder's name.

    diffusers' `load_textual_inversion` makes `<x>`, `<x>_1`, ... of it; A1111 and ComfyUI read it too.
    """
    tensor = vectors.detach().to("cpu", torch.float32).contiguous()
    return safetensors.torch.save({placeholder_token: tensor}, metadata={"format": "pt"})


def load_learned_embeds(data: bytes) -> tuple[str, Tensor]:
    """(placeholder token, float32 (V, D)) of a learned_embeds.safetensors. Raises ValueError."""
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    if len(tensors) != 1:
        raise ValueError(f"expected one word, found {len(tensors)} tensors")
    ((token, vectors),) = tensors.items()
    return token, torch.atleast_2d(vectors.to(torch.float32))
