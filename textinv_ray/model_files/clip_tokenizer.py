"""CLIP's tokenizer, for checkpoints that come without one: its vocabulary follows from its merges."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

LAYOUTS = Path(__file__).resolve().parent / "layouts"
"""The folder with the configurations of single-file checkpoints; see its README.md."""
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def load_tokenizer(
    folder: str, name: str, revision: str | None = None, *, clip: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer in the subfolder `name` of a folder in diffusers' format or a Hub id.

    clip: whether it is a CLIPTokenizer; else its own files say what it is. The folders in `LAYOUTS` have only its
    settings; there it gets CLIP's vocabulary.
    """
    from transformers import CLIPTokenizer

    if not clip:
        from transformers import (
            AutoTokenizer,  # imports torch, which checking a manifest for CLIP does without
        )

        return AutoTokenizer.from_pretrained(folder, subfolder=name, revision=revision or "main")
    if Path(folder).parent != LAYOUTS:
        return CLIPTokenizer.from_pretrained(folder, subfolder=name, revision=revision or "main")
    settings = json.loads((Path(folder) / name / "tokenizer_config.json").read_text(encoding="utf-8"))
    merges = clip_merges()
    return CLIPTokenizer(
        vocab=clip_vocabulary(merges),
        merges=merges,
        model_max_length=settings["model_max_length"],
        pad_token=settings["pad_token"],
    )


def clip_merges() -> list[tuple[str, str]]:
    """CLIP's 48,894 pairs of byte-pair encoding, in the order in which they are applied."""
    text = gzip.decompress((LAYOUTS / "clip" / "merges.txt.gz").read_bytes()).decode()
    pairs = (line.split(" ") for line in text.splitlines())
    return [(first, second) for first, second in pairs]


def clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> id, as clip/simple_tokenizer.py numbers them: bytes, bytes that end a word, merges, special tokens."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = range(256, 256 + 256 - len(printable))  # stand for the bytes without a letter of their own
    letters = [chr(code) for code in (*printable, *others)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), *_SPECIAL]
    return {token: index for index, token in enumerate(tokens)}
