"""The model's tokenizers, which the manifest is checked against. Loading them needs neither torch nor the model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from textinv_ray.config.model import ModelConfig
from textinv_ray.model_files import places
from textinv_ray.model_files.clip_tokenizer import load_tokenizer
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import message, redact

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

_LONGEST_TEXT = 10_000  # characters that are tokenized


def load(model: ModelConfig) -> dict[str, PreTrainedTokenizerBase]:
    """Loads the tokenizers of the model: name of each text encoder -> its tokenizer.

    Raises UnsupportedModelError when words can't be learned for it, UserError when they can't be loaded.
    """
    files = places.open_model(model)
    names = files.tokenizers.items()
    encoders = files.encoder_names
    try:
        if "://" in files.folder:
            with tempfile.TemporaryDirectory() as folder:
                for name, _ in names:
                    _copy(f"{files.folder.rstrip('/')}/{name}", f"{folder}/{name}")
                found = [_with_words(load_tokenizer(folder, name, clip=clip)) for name, clip in names]
                return dict(zip(encoders, found, strict=True))
        folder = str(places.BUNDLED / files.folder) if places.is_bundled(files.folder) else files.folder
        found = [_with_words(load_tokenizer(folder, name, model.revision, clip=clip)) for name, clip in names]
        return dict(zip(encoders, found, strict=True))
    except Exception as error:
        reason = message(str(error).strip().split("\n")[0]) or type(error).__name__
        raise UserError(
            f"the tokenizer of the model {redact(model.path)} can't be loaded: {reason}"
        ) from None


def _with_words(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer. Raises ValueError if it has no words: transformers makes such a one when its files are missing."""
    if not any(map(_word, tokenizer.get_vocab())):
        raise ValueError("it has no words; the files of the tokenizer are missing")
    return tokenizer


def _copy(uri: str, folder: str) -> None:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.get(path.rstrip("/") + "/", folder, recursive=True)


class Vocabulary:
    """The words that a model's tokenizers know."""

    def __init__(self, tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
        """tokenizers: by text encoder."""
        self._tokenizers = list(tokenizers.values())
        words = {_word(token) for tokenizer in self._tokenizers for token in tokenizer.get_vocab()}
        special = {token for tokenizer in self._tokenizers for token in tokenizer.all_special_tokens}
        self._words = pa.array(sorted({word.lower() for word in words | special if word}))
        self._known: dict[str, bool] = {}
        self._counts: dict[str, int] = {}
        clip = {name: tokenizer for name, tokenizer in tokenizers.items() if _is_clip(tokenizer)}
        self._clip = list(clip.values())
        self.room = min((int(tokenizer.model_max_length) for tokenizer in self._clip), default=10**9) - 2
        """Tokens of a prompt that the model's CLIP text encoders read, without those for its begin and end. Prompts of
        language models are longer; they are checked when a concept is prepared."""
        self.readers = [
            name for name, tokenizer in clip.items() if int(tokenizer.model_max_length) - 2 == self.room
        ]
        """Names of the text encoders that read so many."""

    def has(self, words: pa.Array) -> pa.Array:
        """Whether each word is one of a tokenizer's; case does not matter. bool (rows,)."""
        return pc.is_in(pc.utf8_lower(words), self._words)

    def count(self, text: str) -> int:
        """Number of a text's tokens for the CLIP text encoders, the most of them."""
        text = text[:_LONGEST_TEXT]  # one that is far too long is far too long without its end
        if text not in self._counts:
            if len(self._counts) > 100_000:
                self._counts.clear()
            found = [tokenizer(text, add_special_tokens=False, verbose=False) for tokenizer in self._clip]
            self._counts[text] = max((len(tokens.input_ids) for tokens in found), default=0)
        return self._counts[text]

    def reads(self, text: str) -> bool:
        """Whether every tokenizer gives tokens for a text, other than the unknown token."""
        if text not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[text] = all(_ids(tokenizer, text) for tokenizer in self._tokenizers)
        return self._known[text]


def _is_clip(tokenizer: PreTrainedTokenizerBase) -> bool:
    return any(token.endswith("</w>") for token in tokenizer.get_vocab())


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text[:_LONGEST_TEXT], add_special_tokens=False, verbose=False).input_ids
    return [token for token in ids if token != tokenizer.unk_token_id]


def _word(token: str) -> str | None:
    """The whole word that a token is: CLIP's end in </w>, those of language models begin behind a space."""
    if token.endswith("</w>"):
        return token.removesuffix("</w>")
    return token[1:] if token.startswith(("▁", "Ġ")) else None
