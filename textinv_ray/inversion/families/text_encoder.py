"""A frozen text encoder with its tokenizer, and the learned words in its prompts."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


@dataclass(eq=False, repr=False)
class TextEncoder:
    """One of a model's text encoders. D is the length of its token embeddings, L of its prompts in tokens.

    A learned vector is a negative token id: -1 - r stands for row r of a table of learned vectors. So nothing outside
    this class depends on the size of the vocabulary.
    """

    name: str
    """Its key in files of words, as ComfyUI calls it: `clip_l`, `clip_g`, `clip_h`."""
    tokenizer: CLIPTokenizer
    model: PreTrainedModel
    columns: slice
    """Its part of a word's rows, which concatenate the vectors of all encoders: (R, sum of D)."""
    tokens: slice
    """Its part of a prompt's ids, which concatenate the ids of all encoders: (n, sum of L)."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(
        self, input_ids: Tensor, rows: Tensor | None = None, *, all_hidden_states: bool = False
    ) -> BaseModelOutput:
        """The model's output for prompts with learned words.

        The frozen embedding table isn't resized: a forward hook replaces its output at negative ids, so gradients
        reach `rows` alone. The output's pooled state is wrong where the model pools by token ids: see `end_of`.

        input_ids: int64 (B, sum of L). rows: (R, sum of D). all_hidden_states: whether the output has the states
        after every layer.
        """
        ids = input_ids[:, self.tokens]
        if rows is None:
            return self.model(ids, output_hidden_states=all_hidden_states)
        learned = ids < 0
        own = rows[:, self.columns]
        embeddings = F.embedding((-1 - ids).clamp(min=0), own).to(self.table.dtype)

        def replace(_module: nn.Module, _arguments: object, frozen: Tensor) -> Tensor:
            return torch.where(learned[..., None], embeddings, frozen)

        with self._lock:  # the hook must not act on a call by another thread, such as a review
            hook = self.model.get_input_embeddings().register_forward_hook(replace)
            try:
                stand_in = ids.masked_fill(learned, 0)  # its embedding is never used
                return self.model(stand_in, output_hidden_states=all_hidden_states)
            finally:
                hook.remove()

    def end_of(self, input_ids: Tensor) -> Tensor:
        """Place of the end token of each prompt: (B, sum of L) -> int64 (B,), in [0, L).

        Published configurations say `eos_token_id: 2`; then transformers takes the largest id of a prompt for the end
        token, which is wrong as soon as a tokenizer has learned tokens.
        """
        return (input_ids[:, self.tokens] == self.tokenizer.eos_token_id).int().argmax(dim=1)

    @property
    def table(self) -> Tensor:
        """The frozen embedding table: (vocabulary, D)."""
        return self.model.get_input_embeddings().weight.data

    @property
    def dim(self) -> int:
        """D, the length of a token embedding."""
        return self.table.shape[1]

    @property
    def max_tokens(self) -> int:
        """L, the length in tokens that prompts are padded or cut to, with the begin and end tokens."""
        return int(min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings))

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the frozen embedding table: (D,), at least float32."""
        return self.table.mean(dim=0, dtype=self._precision)

    @cached_property
    def norm(self) -> float:
        """Mean Euclidean norm of the rows of the frozen embedding table."""
        return float(torch.linalg.vector_norm(self.table, dim=1, dtype=self._precision).mean())

    @property
    def _precision(self) -> torch.dtype:
        return torch.promote_types(self.table.dtype, torch.float32)

    def tokenize(self, prompt: str, pieces: Iterable[str], ids_of: Mapping[str, Sequence[int]]) -> list[int]:
        """Token ids of a prompt, padded to L. Prompts that are longer are truncated, as in diffusers.

        pieces: the prompt, split at placeholder tokens. ids_of: placeholder token in lower case -> its negative ids.
        Raises ValueError when truncation cuts off a placeholder.
        """
        ids: list[int] = []
        room = self.max_tokens - 2
        for piece in pieces:
            if piece.lower() in ids_of:
                ids += ids_of[piece.lower()]
                if len(ids) > room:
                    raise ValueError(
                        f"the prompt {prompt!r} is longer than the {room} tokens that the model reads, "
                        f"so {piece!r} would be cut off: shorten the prompt"
                    )
            elif piece:
                ids += self.token_ids(piece)
        ids = [self.tokenizer.bos_token_id, *ids[:room], self.tokenizer.eos_token_id]
        return ids + [self.tokenizer.pad_token_id] * (self.max_tokens - len(ids))

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
        return [token.removesuffix("</w>") for token in tokens if token.endswith("</w>")][:count]


def encoders_of(parts: Sequence[tuple[str, CLIPTokenizer, PreTrainedModel]]) -> tuple[TextEncoder, ...]:
    """Encoders from (name, tokenizer, model), in the order in which words and prompts concatenate them."""
    encoders = [TextEncoder(*part, slice(0), slice(0)) for part in parts]
    columns = [0, *accumulate(encoder.dim for encoder in encoders)]
    tokens = [0, *accumulate(encoder.max_tokens for encoder in encoders)]
    for index, encoder in enumerate(encoders):
        encoder.columns = slice(columns[index], columns[index + 1])
        encoder.tokens = slice(tokens[index], tokens[index + 1])
    return tuple(encoders)
