"""The vocabulary of mini-sd and mini-clip: a CLIP byte-pair tokenizer in which every caption word is one token.

python -m training.tokenizer
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import models, trainers
from transformers import CLIPTokenizer

from training.captions import vocabulary_words
from training.common import MODELS
from training.effects import EFFECTS

MAX_LENGTH = 40
"""Positions of the text encoders, start and end token included."""


def train(words: list[str]) -> CLIPTokenizer:
    """Learn merges until each word is a single token, as CLIP's own training would for a corpus of these words."""
    blank = CLIPTokenizer()
    tokenizer = blank.backend_tokenizer
    tokenizer.model = models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    from tokenizers import pre_tokenizers

    trainer = trainers.BpeTrainer(
        vocab_size=30000,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(words, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    # CLIP's own order: the 256 bytes, the same bytes ending a word, the merges, then start and end.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned["merges"]
    ]
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    tokens += [left + right for left, right in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and, for programs that read the older pair, vocab.json and merges.txt."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def load(folder: Path = MODELS / "mini-sd" / "tokenizer") -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def main() -> None:
    words = sorted(set(vocabulary_words()) | {word for effect in EFFECTS for word in effect.split()})
    tokenizer = train(words)
    split = [word for word in words if len(tokenizer(word).input_ids) != 3]
    if split:
        raise SystemExit(f"{len(split)} words are not one token each: {split[:10]}")
    for folder in (MODELS / "mini-sd" / "tokenizer", MODELS / "mini-clip"):
        folder.mkdir(parents=True, exist_ok=True)
        save(tokenizer, folder)
    print(f"{len(words)} words, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
