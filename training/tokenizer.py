"""The vocabulary of the bundled models: a CLIP byte-pair tokenizer in which every caption word is one token.

    python -m training.tokenizer [--new]

Keeps every token that there is and adds what is missing at the end, so that trained embeddings stay where they are.
--new learns the merges again, for models that are trained from nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, trainers
from transformers import CLIPTokenizer

from training.captions import vocabulary_words
from training.common import MODELS
from training.effects import EFFECTS
from training.naming import WORD_NORM

FOLDER = MODELS / "mini-sd" / "tokenizer"
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


def extended(tokenizer: CLIPTokenizer, words: list[str]) -> CLIPTokenizer:
    """A tokenizer with the same tokens and, after them, one for each of `words` that was several.

    Its merges come last, so that every word that was one token already has become it before they are looked at.
    """
    known = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in known["merges"]
    ]
    vocabulary = dict(known["vocab"])
    for special in tokenizer.all_special_tokens:
        vocabulary.setdefault(special, tokenizer.convert_tokens_to_ids(special))
    grown = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
    for word in words:
        pieces = grown.tokenize(word)
        if len(pieces) == 1:
            continue
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            vocabulary.setdefault(pieces[0], len(vocabulary))
        grown = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
    return grown


def grow_embeddings(folder: Path, count: int) -> int:
    """Give the text encoder in `folder` rows for `count` tokens, new ones at random; returns how many were added."""
    weights, config = (
        load_file(folder / "model.safetensors"),
        json.loads((folder / "config.json").read_text()),
    )
    (name,) = (name for name in weights if name.endswith("token_embedding.weight"))
    table = weights[name]
    added = count - len(table)
    if added > 0:
        rows = torch.randn(added, table.shape[1], generator=torch.Generator().manual_seed(0))
        rows = torch.nn.functional.normalize(rows, dim=1) * WORD_NORM
        save_file(
            {**weights, name: torch.cat([table, rows.to(table)])},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": count}, indent=2) + "\n")
    return max(0, added)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and, for programs that read the older pair, vocab.json and merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def load(folder: Path = FOLDER) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--new", action="store_true", help="forget the tokens that there are")
    options = parser.parse_args()
    words = sorted(set(vocabulary_words()) | {word for effect in EFFECTS for word in effect.split()})
    known = FOLDER.exists() and not options.new
    tokenizer = extended(load(), words) if known else train(words)
    split = [word for word in words if len(tokenizer(word).input_ids) != 3]
    if split:
        raise SystemExit(f"{len(split)} words are not one token each: {split[:10]}")
    save(tokenizer, FOLDER)
    if known:
        grow_embeddings(FOLDER.parent / "text_encoder", len(tokenizer))
    print(f"{len(words)} words, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
