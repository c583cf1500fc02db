"""States of prompts that are encoded once."""

from __future__ import annotations

import torch
from torch import Tensor

from textinv_ray.inversion.families.state_cache import Encoded, StateCache


class Recorder:
    """An encoder of states (L, 2) that notes what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[list[int]] = []

    def __call__(self, ids: Tensor, rows: Tensor | None) -> Encoded:
        self.encoded += ids.tolist()
        words = 0 if rows is None else rows.sum()
        return Encoded(ids[..., None] * torch.ones(2) + words, ids.sum(dim=1, keepdim=True).float())


def test_a_prompt_is_encoded_once() -> None:
    cache, encode = StateCache(), Recorder()
    ids = torch.tensor([[1, 2], [3, 4], [1, 2]])
    for chosen in ([0, 1, 2], [2, 1], [0]):
        found = cache.get(ids[chosen], None, encode)
        expected = Recorder()(ids[chosen], None)
        assert torch.equal(found.hidden_states, expected.hidden_states)
        assert found.pooled is not None
        assert expected.pooled is not None
        assert torch.equal(found.pooled, expected.pooled)
        assert found.mask is None
    assert encode.encoded == [[1, 2], [3, 4]]


def test_words_are_told_apart_by_their_vectors_and_not_by_their_rows() -> None:
    cache, encode = StateCache(), Recorder()
    rows = torch.tensor([[1.0], [2.0], [1.0]])
    for row in (0, 1, 2):
        cache.get(torch.tensor([[5, -1 - row]]), rows, encode)
    assert encode.encoded == [[5, -1], [5, -2]]


def test_what_was_used_least_recently_makes_room() -> None:
    one = torch.tensor([[1, 2]])
    size = sum(part.numel() * part.element_size() for part in Recorder()(one, None)[:2] if part is not None)
    cache, encode = StateCache(max_bytes=2 * size), Recorder()
    for number in (1, 2, 1, 3, 1, 2):
        cache.get(one * number, None, encode)
        assert len(cache) <= 2
    assert [ids[0] for ids in encode.encoded] == [1, 2, 3, 2]
