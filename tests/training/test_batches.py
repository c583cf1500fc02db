"""Captions that other processes make ahead of the training."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import drawings
from training.batches import Captions, all_features, named_words
from training.common import Data, Team
from training.naming import NORMS, WORD_NORM, NameEncoder
from training.tokenizer import load


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(drawings.write(tmp_path))


@pytest.fixture
def captions(data: Data) -> Captions:
    features = {feature: i for i, feature in enumerate(all_features(data))}
    return Captions(data, load(), features, Team(), 0.2)


def test_how_many_processes_draw_changes_nothing(captions: Captions) -> None:
    alone, helped = (list(itertools.islice(captions.ahead(4, 2, 3, workers), 5)) for workers in (0, 2))
    assert [step for step, *_ in alone] == [3, 4, 5, 6, 7]
    for (step, indices, words), (other, others, drawn) in zip(alone, helped, strict=True):
        assert step == other
        np.testing.assert_array_equal(indices, others)
        torch.testing.assert_close(words, drawn)


def test_composed_views_can_be_left_out(data: Data) -> None:
    features = {feature: i for i, feature in enumerate(all_features(data))}
    for index in (1, 4):
        data.rows[index]["composed"] = True
    for composed, count in ((True, len(data)), (False, len(data) - 2)):
        captions = Captions(data, load(), features, Team(), 0.2, composed=composed)
        epoch = [indices for _, indices, _ in itertools.islice(captions.ahead(1, 2, 0, 0), count)]
        drawn = np.concatenate(epoch).tolist()
        assert sorted(drawn) == [i for i in range(len(data)) if composed or i not in (1, 4)]


def test_the_slot_word_has_its_vectors(captions: Captions, data: Data) -> None:
    names = NameEncoder(all_features(data), 16)
    words = captions.draw(np.arange(len(data)), 0)
    ids, slots, vectors = named_words(names, words, captions.slot_id, seed=0)
    assert ids.shape == slots.shape
    assert 0.2 < slots.any(1).float().mean() < 0.9
    norms = vectors.norm(dim=1)
    assert ((norms > 0.9 * NORMS[0] * WORD_NORM) & (norms < 1.1 * NORMS[1] * WORD_NORM)).all()
