"""Name vectors and the norms of words."""

from __future__ import annotations

from pathlib import Path

import torch

from training.naming import NORMS, WORD_NORM, NameEncoder, jitter, limit_norms


def test_name_vectors_have_the_norm_of_words_and_ignore_unknown_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = NameEncoder(["style=a", "hair=red", "hair=blue"], dimension=16)
    rgb = [[0.5] * 9] * 2
    vectors = encoder(*encoder.inputs([["style=a", "hair=red"], ["style=a", "hair=red", "hat=none"]], rgb))
    torch.testing.assert_close(vectors[0], vectors[1])
    torch.testing.assert_close(vectors.norm(dim=1), torch.full((2,), WORD_NORM))
    encoder.save(tmp_path / "names.safetensors")
    other = NameEncoder(["style=a", "hair=red", "hair=blue"], dimension=16)
    other.restore(tmp_path / "names.safetensors")
    again = other(*other.inputs([["style=a", "hair=red"]], rgb[:1]))
    torch.testing.assert_close(again[0], vectors[0], atol=2e-3, rtol=1e-2)


def test_limit_norms_only_shortens() -> None:
    table = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
    limit_norms(table)
    torch.testing.assert_close(table, torch.tensor([[0.24, 0.32], [0.1, 0.0]]))


def test_jitter_stays_near() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(200, 64), dim=1) * WORD_NORM
    moved = jitter(vectors)
    cosines = torch.nn.functional.cosine_similarity(vectors, moved)
    assert cosines.min() > 0.9
    assert moved.norm(dim=1).min() > 0.9 * NORMS[0] * WORD_NORM
    assert moved.norm(dim=1).max() < 1.1 * NORMS[1] * WORD_NORM


def test_features_that_are_new_keep_their_rows(tmp_path: Path) -> None:
    old = NameEncoder(["style=micah", "hair=red"], 8)
    old.save(tmp_path / "names.safetensors")
    new = NameEncoder(["hair=red", "effect=in sepia", "style=micah"], 8)
    untouched = new.table.weight[new.index["effect=in sepia"]].clone()
    new.restore(tmp_path / "names.safetensors")
    for feature in ("style=micah", "hair=red"):
        expected = old.table.weight[old.index[feature]].half().float()
        torch.testing.assert_close(new.table.weight[new.index[feature]], expected)
    torch.testing.assert_close(new.table.weight[new.index["effect=in sepia"]], untouched)
