"""Text encoders of language models, T5, Gemma 2 and Qwen 3, whose tokenizers merge across spaces and punctuation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textinv_ray.inversion.families.state_cache import Encoded
from textinv_ray.inversion.families.text_encoder import TextEncoder

STAND_IN = "\ue0ff"
"""An added token of the tokenizer, in whose place words are tokenized. Of Unicode's private use area."""


@dataclass(eq=False, repr=False)
class LanguageEncoder(TextEncoder):
    """A language model whose tokenizer sees the whole prompt, with words as added tokens.

    So what stands around a word is tokenized as the plain tokenizer does it around an added token.
    """

    length: int = 512
    """The most tokens of a prompt, as the pipeline says."""

    once_per_prompt = True

    def __post_init__(self) -> None:
        self.tokenizer.add_tokens([STAND_IN])
        self._stand_in = self.tokenizer.convert_tokens_to_ids(STAND_IN)

    @property
    def max_tokens(self) -> int:
        """L."""
        return int(min(self.length, self.tokenizer.model_max_length))

    def whole(
        self,
        prompt: str,
        pieces: Iterable[str],
        ids_of: Mapping[str, Sequence[int]],
        room: int,
        around: Callable[[str], str] = str,
    ) -> list[int]:
        """The first `room` ids of a prompt, without special tokens.

        around: puts the model's own text around a prompt. Other arguments: see `TextEncoder.tokenize`.
        """
        text, found = "", []
        for piece in pieces:
            if piece.lower() in ids_of:
                found.append(piece)
                text += STAND_IN
            else:
                text += piece.replace(STAND_IN, "\ufffd")
        ids: list[int] = []
        words = iter(found)
        for id_ in self.tokenizer(around(text), add_special_tokens=False).input_ids:
            if id_ != self._stand_in:
                ids.append(id_)
                continue
            word = next(words)
            ids += ids_of[word.lower()]
            if len(ids) > room:
                raise self.cut_off(prompt, word, room)
        return ids[:room]

    def padded(self, ids: list[int]) -> list[int]:
        """To L tokens."""
        return ids + [self.tokenizer.pad_token_id] * (self.max_tokens - len(ids))

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens within a prompt, behind a space."""
        return list(self.tokenizer(f" {text}", add_special_tokens=False).input_ids)

    def spellings(self, text: str) -> tuple[str, ...]:
        """As it is, and behind a space."""
        return text, f"▁{text}"

    def word_of(self, token: str) -> str | None:
        """Words begin behind a space."""
        word = token.removeprefix("▁")
        return word if token.startswith("▁") and word.isalpha() else None


@dataclass(eq=False, repr=False)
class T5Encoder(LanguageEncoder):
    """The encoder of T5 (Raffel et al. 2020). Padding isn't masked, as in the pipelines of SD 3 and Flux.1."""

    def tokenize(
        self,
        prompt: str,
        pieces: Iterable[str],
        ids_of: Mapping[str, Sequence[int]],
        *,
        negative: bool = False,
    ) -> list[int]:
        """See `TextEncoder.tokenize`."""
        ids = self.whole(prompt, pieces, ids_of, self.max_tokens - 1)
        return self.padded([*ids, self.tokenizer.eos_token_id])

    def output(self, ids: Tensor, rows: Tensor | None) -> Encoded:
        """The last hidden states (B, L, D)."""
        return Encoded(self.run(ids, rows).last_hidden_state)

    @property
    def embedding(self) -> nn.Embedding:
        """The encoder's own module: `get_input_embeddings` gives another one with the same weights."""
        return self.model.encoder.embed_tokens


@dataclass(eq=False, repr=False)
class GemmaEncoder(LanguageEncoder):
    """Gemma 2 as Sana uses it (Xie et al. 2024, "Complex Human Instruction").

    Prompts are in lower case. An instruction stands before them, but not before negative ones. Of the states, those of
    the first token and of the last `length` - 1 are kept; of negative prompts the first `length`.
    """

    length: int = 300
    instruction: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._begin = list(self.tokenizer("").input_ids)
        self._prefix = list(self.tokenizer.encode(self.instruction)) if self.instruction else []

    @property
    def max_tokens(self) -> int:
        """L, with the instruction."""
        return len(self._prefix) + self.length - 2 if self._prefix else self.length

    def tokenize(
        self,
        prompt: str,
        pieces: Iterable[str],
        ids_of: Mapping[str, Sequence[int]],
        *,
        negative: bool = False,
    ) -> list[int]:
        """See `TextEncoder.tokenize`."""
        room = (self.length if negative else self.max_tokens) - len(self._begin)
        before = "" if negative else self.instruction
        ids = self.whole(prompt, self._trimmed(pieces), ids_of, room, lambda text: before + text)
        return self.padded([*self._begin, *ids])

    def output(self, ids: Tensor, rows: Tensor | None) -> Encoded:
        """The last hidden states (B, length, D) and the mask (B, length)."""
        mask = (ids != self.tokenizer.pad_token_id).long()
        states = self.run(ids, rows, attention_mask=mask).last_hidden_state
        kept = torch.arange(self.length, device=ids.device).expand(len(ids), -1)
        if self._prefix:
            # The instruction's last token may have merged with the prompt's first
            sure = torch.tensor(self._prefix[:-1], device=ids.device)
            positive = (ids[:, : len(sure)] == sure).all(dim=1, keepdim=True)
            skipped = ids.shape[1] - self.length
            kept = torch.where(positive & (kept > 0), kept + skipped, kept)
        return Encoded(
            states.gather(1, kept[..., None].expand(-1, -1, states.shape[2])), None, mask.gather(1, kept)
        )

    def _trimmed(self, pieces: Iterable[str]) -> list[str]:
        """Pieces of a prompt in lower case, without space at both ends."""
        lower = [piece.lower() for piece in pieces]
        while lower and not lower[0].strip():
            lower.pop(0)
        while lower and not lower[-1].strip():
            lower.pop()
        if lower:
            lower[0] = lower[0].lstrip()
            lower[-1] = lower[-1].rstrip()
        return lower

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens within a prompt, behind a space, in lower case."""
        return super().token_ids(text.lower())


@dataclass(eq=False, repr=False)
class QwenEncoder(LanguageEncoder):
    """Qwen 3 as Flux.2 Klein uses it: a prompt is what a user says in a chat, and states of several layers are read.

    Padding is masked in the encoder. Its states go on to the denoiser like all others.
    """

    layers: tuple[int, ...] = ()
    """After so many layers the states are read."""

    def tokenize(
        self,
        prompt: str,
        pieces: Iterable[str],
        ids_of: Mapping[str, Sequence[int]],
        *,
        negative: bool = False,
    ) -> list[int]:
        """See `TextEncoder.tokenize`."""
        ids = self.whole(prompt, pieces, ids_of, self.max_tokens, self._said)
        if self.tokenizer.padding_side == "right":
            return self.padded(ids)
        return [self.tokenizer.pad_token_id] * (self.max_tokens - len(ids)) + ids

    def _said(self, prompt: str) -> str:
        """The chat in which a user says a prompt, up to where the answer begins, by the tokenizer's own template."""
        chat = [{"role": "user", "content": prompt}]
        return str(
            self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )

    def output(self, ids: Tensor, rows: Tensor | None) -> Encoded:
        """States of the layers, side by side: (B, L, layers D)."""
        found = self.run(ids, rows, all_hidden_states=True, attention_mask=self.mask(ids))
        return Encoded(torch.cat([found.hidden_states[layer] for layer in self.layers], dim=-1))

    def mask(self, ids: Tensor) -> Tensor:
        """1 for tokens, 0 for padding: (B, L)."""
        # The token of padding may stand in a prompt, but a chat neither begins nor ends with it
        mask = (ids != self.tokenizer.pad_token_id).long()
        if self.tokenizer.padding_side == "left":
            return mask.cummax(dim=1).values
        return mask.flip(1).cummax(dim=1).values.flip(1)

    def spellings(self, text: str) -> tuple[str, ...]:
        """As it is, and behind a space."""
        return text, f"Ġ{text}"

    def word_of(self, token: str) -> str | None:
        """Words begin behind a space. Letters beyond ASCII are bytes here."""
        word = token.removeprefix("Ġ")
        return word if token.startswith("Ġ") and word.isascii() and word.isalpha() else None
