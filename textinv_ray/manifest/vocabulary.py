"""The model's tokenizer, which the manifest is checked against. Loading it needs neither torch nor the model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from textinv_ray.config.job import ModelConfig
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact, redact_text

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BUNDLED = Path(__file__).resolve().parents[1] / "models"
"""The folder of the bundled models."""


def load(model: ModelConfig) -> CLIPTokenizer:
    """Loads the tokenizer of the model: of a bundled name, a folder, an fsspec URI or a Hub id. Raises UserError."""
    from transformers import CLIPTokenizer

    try:
        if "://" in model.path:
            with tempfile.TemporaryDirectory() as folder:
                _copy(model.path.rstrip("/") + "/tokenizer", folder)
                return _with_words(CLIPTokenizer.from_pretrained(folder))
        for place in (BUNDLED / model.path, Path(model.path).expanduser()):
            if place.is_dir():
                return _with_words(CLIPTokenizer.from_pretrained(place / "tokenizer"))
        from huggingface_hub import hf_hub_download

        # First one file: without a network this fails once, where the tokenizer tries each of its files for long.
        hf_hub_download(model.path, "model_index.json", revision=model.revision)
        return _with_words(
            CLIPTokenizer.from_pretrained(
                model.path, subfolder="tokenizer", revision=model.revision or "main"
            )
        )
    except Exception as error:
        reason = redact_text(str(error)).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"the tokenizer of the model {redact(model.path)} can't be loaded: {reason}"
        ) from None


def _with_words(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """The tokenizer. Raises ValueError if it has no words: transformers makes such a one when its files are missing."""
    if not any(token.endswith("</w>") for token in tokenizer.get_vocab()):
        raise ValueError("it has no words; the files of the tokenizer are missing")
    return tokenizer


def _copy(uri: str, folder: str) -> None:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.get(path.rstrip("/") + "/", folder, recursive=True)


class Vocabulary:
    """The words that a tokenizer knows."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        # In the vocabulary, words end in </w>; special tokens do not.
        vocabulary = tokenizer.get_vocab()
        self._words = pa.array(
            sorted({token.removesuffix("</w>") for token in vocabulary if _is_word(token)})
        )
        self._known: dict[str, list[int]] = {}

    def has(self, words: pa.Array) -> pa.Array:
        """Whether each word is one of the vocabulary; case does not matter. bool (rows,)."""
        return pc.is_in(pc.utf8_lower(words), self._words)

    def tokens(self, text: str) -> list[int]:
        """Ids of a text's tokens, without the unknown token."""
        if text not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            ids = self._tokenizer(text, add_special_tokens=False).input_ids
            self._known[text] = [token for token in ids if token != self._tokenizer.unk_token_id]
        return self._known[text]


def _is_word(token: str) -> bool:
    return token.endswith("</w>") or token.startswith("<|")
