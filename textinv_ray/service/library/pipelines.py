"""Puts learned words into plain diffusers pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from textinv_ray.concepts.word_files import Word
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.util.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    Encoder = tuple[CLIPTokenizer, CLIPTextModel]


def load_words(pipeline: DiffusionPipeline, *sources: str) -> list[str]:
    """Puts learned words into a diffusers pipeline of Stable Diffusion 1.x, 2.x or XL. Returns their tokens.

    Afterwards prompts of the pipeline may contain the tokens, also those of image-to-image, inpainting and ControlNet
    pipelines of these families. A word of V vectors becomes the tokens `<x>`, `<x>_1`, ..., to which diffusers expands
    `<x>` in prompts.

    With SDXL this also mends the pooled prompt: published configurations say `eos_token_id: 2`, for which transformers
    takes the token with the largest id for the end of a prompt, and that is the learned token. From now on it looks
    for the end token itself. (`pipeline.load_textual_inversion` alone leaves that wrong.)

    sources: outputs of `textinv invert` (folders or fsspec URIs) and files of words.
    Raises UserError for a source without words, and a word that was learned for another model or is in the pipeline
    already; then no word of the sources was added.
    """
    lexicon = Lexicon(sources)
    encoders = _encoders_of(pipeline)
    words = {token: lexicon.word(token) for token in lexicon.tokens}
    parts = {token: _parts(token, word, encoders) for token, word in words.items()}
    for token in parts:
        if any(token in tokenizer.get_vocab() for tokenizer, _ in encoders.values()):
            raise UserError(f"the word {token!r} is in the pipeline already")
    for token, vectors in parts.items():
        for name, (tokenizer, encoder) in encoders.items():
            pipeline.load_textual_inversion(
                vectors[name], token=token, tokenizer=tokenizer, text_encoder=encoder
            )
    for tokenizer, encoder in encoders.values():
        _pool_at_the_end_token(encoder, tokenizer.eos_token_id)
    return list(parts)


def _encoders_of(pipeline: DiffusionPipeline) -> dict[str, Encoder]:
    """The pipeline's text encoders with their tokenizers, by the names that word files use. Raises UserError."""
    name = type(pipeline).__name__
    if (
        not hasattr(pipeline, "load_textual_inversion")
        or getattr(pipeline, "text_encoder_3", None) is not None
    ):
        raise UserError(
            f"words can't be loaded into a {name}: known are pipelines of Stable Diffusion 1.x, 2.x and XL"
        )
    first, second = pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)
    if second is None:
        return {"": (pipeline.tokenizer, first)}
    return {"clip_l": (pipeline.tokenizer, first), "clip_g": (pipeline.tokenizer_2, second)}


def _parts(token: str, word: Word, encoders: dict[str, Encoder]) -> dict[str, torch.Tensor]:
    """A word's vectors for each encoder. Raises UserError when the word is of another model."""
    parts = dict(word) if len(encoders) > 1 else {"": next(iter(word.values()))}
    own = {name: encoder.get_input_embeddings().embedding_dim for name, (_, encoder) in encoders.items()}
    if len(word) != len(own) or {name: part.shape[1] for name, part in parts.items()} != own:
        has = " and ".join(f"{name} ({part.shape[1]})" for name, part in word.items())
        takes = " and ".join(f"{name} ({dim})" if name else str(dim) for name, dim in own.items())
        raise UserError(
            f"the word {token!r} was learned for another model: it has vectors for {has}, the pipeline takes {takes}"
        )
    return {name: torch.tensor(part) for name, part in parts.items()}


def _pool_at_the_end_token(encoder: CLIPTextModel, end_token_id: int) -> None:
    """Makes the encoder pool at the end token. transformers reads the attribute at every call."""
    model = getattr(encoder, "text_model", encoder)
    model.eos_token_id = end_token_id
    model.config.eos_token_id = encoder.config.eos_token_id = end_token_id
