"""A frozen text encoder with its tokenizer, and the learned words in its prompts."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from textinv_ray.inversion.families.state_cache import Encoded, StateCache

Encoder = TypeVar("Encoder", bound="TextEncoder")


@dataclass(eq=False, repr=False)
class TextEncoder(ABC):
    """One of a model's text encoders. D is the length of its token embeddings, L of its prompts in tokens.

    A learned vector is a negative token id: -1 - r stands for row r of a table of learned vectors. So nothing outside
    this class depends on the size of the vocabulary.
    """

    name: str
    """Its key in files of words, as ComfyUI calls it: `clip_l`, `clip_g`, `clip_h`, `t5xxl`, `gemma`,
    `qwen3_4b`, `qwen3_8b`."""
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    columns: slice = field(default_factory=partial(slice, 0))
    """Its part of a word's rows, which concatenate the vectors of all encoders: (R, sum of D)."""
    tokens: slice = field(default_factory=partial(slice, 0))
    """Its part of a prompt's ids, which concatenate the ids of all encoders: (n, sum of L)."""
    states: StateCache = field(default_factory=StateCache)
    """Of prompts that were encoded with `learned=False`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    once_per_prompt: ClassVar[bool] = False
    """Whether equal prompts of a batch run once: worth it where the encoder is large."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """L, the length in tokens that prompts are padded or cut to."""

    @abstractmethod
    def tokenize(
        self,
        prompt: str,
        pieces: Iterable[str],
        ids_of: Mapping[str, Sequence[int]],
        *,
        negative: bool = False,
    ) -> list[int]:
        """Token ids of a prompt, padded to L. Prompts that are longer are truncated, as in diffusers.

        pieces: the prompt, split at placeholder tokens. ids_of: placeholder token in lower case -> its negative ids.
        negative: whether it is the negative prompt of classifier-free guidance.
        Raises ValueError when truncation cuts off a placeholder.
        """

    @abstractmethod
    def output(self, ids: Tensor, rows: Tensor | None) -> Encoded:
        """What the model says of prompts. ids: int64 (B, L), own ones. rows: (R, D), own columns; None: no word."""

    @abstractmethod
    def spellings(self, text: str) -> tuple[str, ...]:
        """The tokens that the vocabulary may have for a whole word."""

    @abstractmethod
    def word_of(self, token: str) -> str | None:
        """The whole word that a token of the vocabulary is; None for a part of a word."""

    def encode(self, input_ids: Tensor, rows: Tensor | None = None, *, learned: bool = True) -> Encoded:
        """What the encoder says of prompts with learned words; gradients reach `rows`, unless not `learned`.

        Equal prompts run once where that is worth it. Prompts of an encoder that doesn't learn run once, and their
        states are kept. input_ids: int64 (B, sum of L). rows: (R, sum of D).
        """
        ids = input_ids[:, self.tokens]
        own = None if rows is None else rows[:, self.columns]
        if not learned:
            with torch.no_grad():
                return self.states.get(ids, own, self.output)
        if not self.once_per_prompt:
            return self.output(ids, own)
        unique, inverse = ids.unique(dim=0, return_inverse=True)
        return self.output(unique, own).map(lambda part: part[inverse])

    def run(
        self, ids: Tensor, rows: Tensor | None = None, *, all_hidden_states: bool = False, **options: Tensor
    ) -> BaseModelOutput:
        """The model's output for prompts with learned words.

        The frozen embedding table isn't resized: a forward hook replaces its output at negative ids, so gradients
        reach `rows` alone. The output's pooled state is wrong where the model pools by token ids: see `end_of`.

        ids: int64 (B, L), own ones. rows: (R, D), own columns. all_hidden_states: whether the output has the states
        after every layer. options: more arguments of the model.
        """
        if rows is None:
            return self.model(ids, output_hidden_states=all_hidden_states, **options)
        learned = ids < 0
        embeddings = F.embedding((-1 - ids).clamp(min=0), rows).to(self.table.dtype)
        scale = getattr(self.embedding, "embed_scale", None)  # Gemma's
        if scale is not None:
            embeddings = embeddings * scale.to(embeddings.dtype)

        def replace(_module: nn.Module, _arguments: object, frozen: Tensor) -> Tensor:
            return torch.where(learned[..., None], embeddings, frozen)

        with self._lock:  # the hook must not act on a call by another thread, such as a review
            hook = self.embedding.register_forward_hook(replace)
            try:
                stand_in = ids.masked_fill(learned, 0)  # its embedding is never used
                return self.model(stand_in, output_hidden_states=all_hidden_states, **options)
            finally:
                hook.remove()

    @property
    def embedding(self) -> nn.Embedding:
        """The module that looks token embeddings up."""
        return self.model.get_input_embeddings()

    @property
    def table(self) -> Tensor:
        """The frozen embedding table: (vocabulary, D)."""
        return self.embedding.weight.data

    @property
    def dim(self) -> int:
        """D, the length of a token embedding."""
        return self.table.shape[1]

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the frozen embedding table: (D,), at least float32."""
        return self.table.mean(dim=0, dtype=self._precision)

    @cached_property
    def norm(self) -> float:
        """Mean Euclidean norm of the rows of the frozen embedding table."""
        return float(torch.linalg.vector_norm(self.table, dim=1, dtype=self._precision).mean())

    @cached_property
    def root_mean_square(self) -> float:
        """Of the elements of the frozen embedding table."""
        norms = torch.linalg.vector_norm(self.table, dim=1, dtype=self._precision)
        return float((norms.square().mean() / self.dim).sqrt())

    @property
    def _precision(self) -> torch.dtype:
        return torch.promote_types(self.table.dtype, torch.float32)

    def is_context(self, ids: Tensor) -> Tensor:
        """Which tokens of prompts are text, neither of a word nor begin, end or padding: (B, L) -> bool (B, L)."""
        special = torch.tensor(self._special_ids, device=ids.device)
        return (ids >= 0) & ~torch.isin(ids, special)

    @cached_property
    def _special_ids(self) -> list[int]:
        return list(self.tokenizer.all_special_ids)

    def known_as(self, text: str) -> bool:
        """Whether a text is one token of the vocabulary."""
        tokenizer = self.tokenizer
        tokens = self.spellings(text)
        # Unknown tokens get the id of the unknown token, or None where there is none
        ids = (tokenizer.convert_tokens_to_ids(token) for token in tokens)
        return any(
            id_ is not None and tokenizer.convert_ids_to_tokens(id_) == token
            for token, id_ in zip(tokens, ids, strict=True)
        )

    def cut_off(self, prompt: str, placeholder_token: str, room: int) -> ValueError:
        """The error for a prompt that is so long that a word is cut off. room: tokens that the encoder reads."""
        return ValueError(
            f"the prompt {prompt!r} is longer than the {room} tokens that the model's text encoder {self.name} reads, "
            f"so {placeholder_token!r} would be cut off: shorten the prompt"
        )

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens, without begin and end tokens."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def token_embeddings(self, text: str) -> Tensor:
        """The frozen embedding of each token of a text: (tokens, D), at least float32, on the model's device.

        Raises ValueError when the text gives no token.
        """
        ids = self.token_ids(text)
        if not ids:
            raise ValueError(f"the initializer {text!r} gives no token of the model's vocabulary")
        return self.table[torch.tensor(ids, device=self.table.device)].to(self._precision)

    @torch.no_grad()
    def nearest_words(self, vectors: Tensor, count: int) -> list[str]:
        """Whole words of the vocabulary by largest cosine with the mean of `vectors` (V, D)."""
        table = self.table.float()
        mean = vectors.to(table.device).float().mean(dim=0)
        cosines = F.cosine_similarity(table, mean[None], dim=1)
        tokens = self.tokenizer.convert_ids_to_tokens(cosines.argsort(descending=True).tolist())
        found = (self.word_of(token) for token in tokens if token is not None)
        return [word for word in found if word][:count]


@dataclass(eq=False, repr=False)
class CLIPEncoder(TextEncoder):
    """The text encoder of a CLIP model."""

    penultimate: bool = False
    """Whether the hidden states are those before the last layer, without the final layer norm."""
    pools: Literal["none", "end", "projection"] = "none"
    """What is pooled: nothing, the last state of the end token, or its projection."""

    @property
    def max_tokens(self) -> int:
        """L, with the begin and end tokens."""
        return int(min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings))

    def tokenize(
        self,
        prompt: str,
        pieces: Iterable[str],
        ids_of: Mapping[str, Sequence[int]],
        *,
        negative: bool = False,
    ) -> list[int]:
        """See `TextEncoder.tokenize`."""
        ids: list[int] = []
        room = self.max_tokens - 2
        for piece in pieces:
            if piece.lower() in ids_of:
                ids += ids_of[piece.lower()]
                if len(ids) > room:
                    raise self.cut_off(prompt, piece, room)
            elif piece:
                ids += self.token_ids(piece)
        ids = [self.tokenizer.bos_token_id, *ids[:room], self.tokenizer.eos_token_id]
        return ids + [self.tokenizer.pad_token_id] * (self.max_tokens - len(ids))

    def output(self, ids: Tensor, rows: Tensor | None) -> Encoded:
        """Hidden states (B, L, D) and what `pools` says."""
        found = self.run(ids, rows, all_hidden_states=self.penultimate)
        states = found.hidden_states[-2] if self.penultimate else found.last_hidden_state
        if self.pools == "none":
            return Encoded(states)
        end = self.end_of(ids)
        at_end = found.last_hidden_state[torch.arange(len(end), device=end.device), end]
        return Encoded(states, at_end if self.pools == "end" else self.model.text_projection(at_end))

    def end_of(self, ids: Tensor) -> Tensor:
        """Place of the end token of each prompt: (B, L) -> int64 (B,), in [0, L).

        Published configurations say `eos_token_id: 2`; then transformers takes the largest id of a prompt for the end
        token, which is wrong as soon as a tokenizer has learned tokens.
        """
        return (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)

    def spellings(self, text: str) -> tuple[str, ...]:
        """As it is, and as a word's last token."""
        return text, text.lower() + "</w>"

    def word_of(self, token: str) -> str | None:
        """Words end in `</w>`."""
        return token.removesuffix("</w>") if token.endswith("</w>") else None


def in_order(encoders: Sequence[TextEncoder]) -> tuple[TextEncoder, ...]:
    """Encoders in the order in which words and prompts concatenate them; sets their `columns` and `tokens`."""
    columns = [0, *accumulate(encoder.dim for encoder in encoders)]
    tokens = [0, *accumulate(encoder.max_tokens for encoder in encoders)]
    for index, encoder in enumerate(encoders):
        encoder.columns = slice(columns[index], columns[index + 1])
        encoder.tokens = slice(tokens[index], tokens[index + 1])
    return tuple(encoders)
