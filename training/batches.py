"""The captions of training, with the identity or the style named by one word in about half of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from training import captions as characters
from training.common import Data, Team, batches, device
from training.naming import NameEncoder, inputs_of, jitter

Words = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]
"""Token ids (B, T), and what `NameEncoder` makes the slot word's vectors of."""
NamedWords = tuple[Tensor, Tensor, Tensor]
"""Token ids (B, T), where the slot word is (B, T), and its vectors (B, D)."""


class Captions:
    """Draws captions of rows; all draws of a step come from its number."""

    def __init__(
        self,
        data: Data,
        tokenizer: CLIPTokenizer,
        features: Mapping[str, int],
        team: Team,
        dropped: float,
        said: float = characters.BACKGROUND_SAID,
        composed: bool = True,
    ) -> None:
        """`said`: see `characters.caption`; `composed`: whether rows of composed views are drawn as well."""
        self.data, self.tokenizer, self.features, self.team, self.dropped = (
            data,
            tokenizer,
            features,
            team,
            dropped,
        )
        self.said = said
        self.indices = np.array([i for i, row in enumerate(data.rows) if composed or not row.get("composed")])
        self.slot_word = sorted({row["name"] for row in data.rows if row.get("name")})[0]
        self.slot_id = tokenizer(self.slot_word).input_ids[1]

    def text(self, row: dict[str, Any], rng: np.random.Generator) -> tuple[str, list[str], list[float]]:
        """A caption, and the features and colours that its slot word stands for."""
        effect = row.get("effect")
        features, rgb = list(row["features"]), row["rgb"]
        if rng.random() < self.dropped:
            return "", features, rgb
        kind = rng.random()
        in_words = bool(effect) and rng.random() < 0.5
        if effect and not in_words:
            features = [*features, f"effect={effect}"]
        if kind < 0.17:
            features = [feature for feature in features if feature.startswith(("style=", "effect="))]
            caption, rgb = characters.caption(row, rng, style_name=self.slot_word), [0.5] * 9
        elif kind < 0.61:
            caption = characters.caption(row, rng, name=self.slot_word, said=self.said)
        else:
            caption, in_words = characters.caption(row, rng), bool(effect)
        return (f"{caption} {effect}" if in_words else caption), features, rgb

    def draw(self, indices: np.ndarray, seed: int) -> Words:
        """Of this process's share of a batch, on the CPU."""
        rng = np.random.default_rng((7, seed))
        drawn = self.team.share([self.text(self.data.rows[i], rng) for i in indices])
        texts, features, rgb = zip(*drawn, strict=True)
        encoded = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return encoded.input_ids, inputs_of(self.features, features, rgb)

    def ahead(
        self, size: int, seed: int, first: int, workers: int, shift: int = 0
    ) -> Iterator[tuple[int, Tensor, Words]]:
        """Steps from `first` on without end: number, indices and words, made by so many processes beside this one.

        The captions of step n are drawn with the seed n + `shift`; how many processes there are changes nothing.
        """
        steps = _Ahead(self, size, seed, first, shift)
        pinned = device().type == "cuda"  # a copy from pinned memory doesn't wait for the step before
        return iter(
            DataLoader(
                steps, batch_size=None, num_workers=workers, pin_memory=pinned, collate_fn=lambda step: step
            )
        )


class _Ahead(IterableDataset[tuple[int, Tensor, Words]]):
    """Each of N workers draws every N-th step; the loader takes them in turn."""

    def __init__(self, captions: Captions, size: int, seed: int, first: int, shift: int) -> None:
        self.captions, self.size, self.seed, self.first, self.shift = captions, size, seed, first, shift

    def __iter__(self) -> Iterator[tuple[int, Tensor, Words]]:
        info = get_worker_info()
        start, stride = (info.id, info.num_workers) if info else (0, 1)
        steps = zip(
            count(self.first),
            batches(len(self.captions.indices), self.size, self.seed, self.first),
            strict=False,
        )
        for step, positions in islice(steps, start, None, stride):
            indices = self.captions.indices[positions]
            yield step, torch.from_numpy(indices), self.captions.draw(indices, step + self.shift)


def named_words(names: NameEncoder, words: Words, slot_id: int, seed: int) -> NamedWords:
    """On the device: token ids (B, T), where the slot is (B, T), and the vectors for it (B, D), jittered."""
    ids, inputs = words
    ids = ids.to(device(), non_blocking=True)
    vectors = names(*(part.to(device(), non_blocking=True) for part in inputs))
    return ids, ids == slot_id, jitter(vectors, torch.Generator(device()).manual_seed(seed))


def all_features(data: Data) -> list[str]:
    """Every feature of an identity, and every effect, in a fixed order."""
    effects = {f"effect={row['effect']}" for row in data.rows if "effect" in row}
    return sorted({feature for row in data.rows for feature in row["features"]} | effects)
