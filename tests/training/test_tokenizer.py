"""A vocabulary that grows keeps what was learned with it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from training.tokenizer import extended, grow_embeddings, train

OLD = ["person", "persons", "hat", "hair", "photo", "of"]


def test_an_extended_vocabulary_keeps_every_token() -> None:
    old = train(OLD)
    new = extended(old, ["hatching", "watercolour", "person"])
    assert all(new.get_vocab()[token] == number for token, number in old.get_vocab().items())
    assert [new(word).input_ids for word in OLD] == [old(word).input_ids for word in OLD]
    assert len(old("hatching").input_ids) > 3
    assert [len(new(word).input_ids) for word in ("hatching", "watercolour")] == [3, 3]


def test_nothing_missing_changes_nothing() -> None:
    old = train(OLD)
    assert extended(old, OLD).get_vocab() == old.get_vocab()


def test_the_table_of_embeddings_grows_with_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 3, "hidden_size": 4}))
    name, table = "embeddings.token_embedding.weight", torch.randn(3, 4).half()
    save_file({name: table, "other": torch.ones(2)}, tmp_path / "model.safetensors")
    assert grow_embeddings(tmp_path, 5) == 2
    assert grow_embeddings(tmp_path, 5) == 0
    grown = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(grown[name][:3], table, rtol=0, atol=0)
    assert grown[name].shape == (5, 4)
    assert json.loads((tmp_path / "config.json").read_text()) == {"vocab_size": 5, "hidden_size": 4}
