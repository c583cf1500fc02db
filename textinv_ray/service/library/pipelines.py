"""Puts learned words into plain diffusers pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

import torch

from textinv_ray.concepts.word_files import Word, model_of
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.util.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Encoder = tuple[PreTrainedTokenizerBase, PreTrainedModel]

Result = TypeVar("Result")

_CLIP_L, _CLIP_G = ("clip_l", "tokenizer", "text_encoder"), ("clip_g", "tokenizer_2", "text_encoder_2")
_ENCODERS = {
    "Flux2Klein": (("", "tokenizer", "text_encoder"),),
    "Flux": (_CLIP_L, ("t5xxl", "tokenizer_2", "text_encoder_2")),
    "Sana": (("", "tokenizer", "text_encoder"),),
    "StableDiffusion3": (_CLIP_L, _CLIP_G, ("t5xxl", "tokenizer_3", "text_encoder_3")),
    "StableDiffusionXL": (_CLIP_L, _CLIP_G),
    "StableDiffusion": (("", "tokenizer", "text_encoder"),),
}
"""How the name of a pipeline's class begins -> (name in files of words, tokenizer, model) of each text encoder."""
KNOWN = "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, Flux.1, Flux.2 Klein and Sana"


def load_words(pipeline: DiffusionPipeline, *sources: str) -> list[str]:
    """Puts learned words into a diffusers pipeline of a known family. Returns their tokens.

    Afterwards prompts of the pipeline may contain the tokens, also those of image-to-image, inpainting and ControlNet
    pipelines of these families. A word of V vectors becomes the tokens `<x>`, `<x>_1`, ..., to which `<x>` is expanded
    in prompts: by diffusers, or where it has no loader of words (Stable Diffusion 3, Sana, Flux.2 Klein) by this
    function.

    With SDXL, Stable Diffusion 3 and Flux.1 this also mends the pooled prompt: published configurations say
    `eos_token_id: 2`, for which transformers takes the token with the largest id for the end of a prompt, and that is
    the learned token. From now on it looks for the end token itself. (`pipeline.load_textual_inversion` alone leaves
    that wrong.)

    sources: outputs of `textinv invert` (folders or fsspec URIs) and files of words.
    Raises UserError for a source without words, and a word that was learned for another model or is in the pipeline
    already; then no word of the sources was added.
    """
    lexicon = Lexicon(sources)
    encoders = _encoders_of(pipeline)
    words = {token: lexicon.word(token) for token in lexicon.tokens}
    parts = {token: _parts(token, word, encoders) for token, word in words.items()}
    is_lower = type(pipeline).__name__.startswith("Sana")  # it writes prompts in lower case
    names = {
        token: _names(token.lower() if is_lower else token, next(iter(vectors.values())))
        for token, vectors in parts.items()
    }
    for token, (first, *_) in names.items():
        if any(first in tokenizer.get_vocab() for tokenizer, _ in encoders.values()):
            raise UserError(f"the word {token!r} is in the pipeline already")
    by_diffusers = hasattr(pipeline, "load_textual_inversion")
    for token, vectors in parts.items():
        for name, (tokenizer, encoder) in encoders.items():
            if by_diffusers:
                pipeline.load_textual_inversion(
                    vectors[name], token=token, tokenizer=tokenizer, text_encoder=encoder
                )
            else:
                _add(tokenizer, encoder, names[token], vectors[name])
    if not by_diffusers and names:
        pipeline.encode_prompt = _expanding(pipeline.encode_prompt, names)
    for tokenizer, encoder in encoders.values():
        _pool_at_the_end_token(encoder, tokenizer.eos_token_id)
    return list(parts)


def _names(token: str, vectors: torch.Tensor) -> list[str]:
    """Tokens of a word's vectors, as diffusers calls them."""
    return [token, *(f"{token}_{number}" for number in range(1, len(vectors)))]


def _add(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, names: list[str], vectors: torch.Tensor
) -> None:
    """Gives an encoder tokens with these vectors, (V, D)."""
    tokenizer.add_tokens(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    if max(ids) >= len(
        encoder.get_input_embeddings().weight
    ):  # T5's table has room for more than its vocabulary
        encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    table.data[ids] = vectors.to(table.device, table.dtype)


def _expanding(encode: Callable[..., Result], names: Mapping[str, list[str]]) -> Callable[..., Result]:
    """`encode_prompt` of a pipeline, with words in prompts expanded to their tokens. Case is ignored, as by us."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)
    by_lower = {token.lower(): "".join(parts) for token, parts in names.items()}

    def expanded(value: object) -> object:
        if isinstance(value, str):
            return pattern.sub(lambda match: by_lower[match[0].lower()], value)
        return [expanded(item) for item in value] if isinstance(value, list) else value

    @wraps(encode)
    def expanding(*args: object, **options: object) -> Result:
        return encode(
            *map(expanded, args),
            **{name: expanded(value) if "prompt" in name else value for name, value in options.items()},
        )

    return expanding


def _encoders_of(pipeline: DiffusionPipeline) -> dict[str, Encoder]:
    """The pipeline's text encoders with their tokenizers, by the names that word files use. Raises UserError."""
    kind = type(pipeline).__name__
    for start, parts in _ENCODERS.items():
        if kind.startswith(start) and all(hasattr(pipeline, part) for _, *rest in parts for part in rest):
            return {
                name: (getattr(pipeline, tokenizer), getattr(pipeline, model))
                for name, tokenizer, model in parts
                if getattr(pipeline, model) is not None
            }
    raise UserError(f"words can't be loaded into a {kind}: known are pipelines of {KNOWN}")


def _parts(token: str, word: Word, encoders: dict[str, Encoder]) -> dict[str, torch.Tensor]:
    """A word's vectors for each encoder. Raises UserError when the word is of another model."""
    parts = dict(word) if len(encoders) > 1 else {"": next(iter(word.values()))}
    own = {name: encoder.get_input_embeddings().embedding_dim for name, (_, encoder) in encoders.items()}
    if len(word) != len(own) or {name: part.shape[1] for name, part in parts.items()} != own:
        sizes = {name: part.shape[1] for name, part in word.items()}
        has = " and ".join(f"{name} ({size})" for name, size in sizes.items())
        takes = " and ".join(f"{name} ({dim})" if name else str(dim) for name, dim in own.items())
        raise UserError(
            f"the word {token!r} was learned for {model_of(sizes)}: it has vectors for {has}, "
            f"the pipeline takes {takes}"
        )
    return {name: torch.tensor(part) for name, part in parts.items()}


def _pool_at_the_end_token(encoder: PreTrainedModel, end_token_id: int) -> None:
    """Makes an encoder of CLIP pool at the end token. transformers reads the attribute at every call."""
    if not encoder.config.model_type.startswith("clip"):
        return
    model = getattr(encoder, "text_model", encoder)
    model.eos_token_id = end_token_id
    model.config.eos_token_id = encoder.config.eos_token_id = end_token_id
