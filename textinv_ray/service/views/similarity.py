"""How alike learned words are: by the cosine of the means of their vectors, as with the vocabulary's words.

Two concepts with one word between them are a duplicate in the catalogue, or were taught by the same images.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

_TILE = 4096  # words: a tile of cosines is 64 MiB, whatever the number of words


def direction(vectors: np.ndarray) -> np.ndarray:
    """Mean of a word's vectors, of length 1 (or 0): float32 (V, D) -> float32 (D,)."""
    mean = np.asarray(vectors, np.float32).mean(axis=0)
    norm = float(np.linalg.norm(mean))
    return mean / norm if norm else mean


def nearest(directions: np.ndarray, tile: int = _TILE) -> tuple[np.ndarray, np.ndarray]:
    """For each word the other word with the largest cosine: int64 (N,), -1 if there is none, and float32 (N,).

    directions: float32 (N, D) of length 1, a memory map will do. Of equal ones the first counts. Each pair is
    computed once: N^2 D multiplications, 2 tile D + tile^2 numbers in memory.
    """
    count = len(directions)
    index, cosine = np.full(count, -1, np.int64), np.full(count, -np.inf, np.float32)
    for first in range(0, count, tile):
        rows = np.asarray(directions[first : first + tile])
        for second in range(first, count, tile):
            columns = np.asarray(directions[second : second + tile])
            cosines = rows @ columns.T
            if first == second:
                np.fill_diagonal(cosines, -np.inf)
            _improve(index, cosine, first, second, cosines)
            if first != second:
                _improve(index, cosine, second, first, cosines.T)
    return index, cosine


def _improve(index: np.ndarray, cosine: np.ndarray, first: int, second: int, cosines: np.ndarray) -> None:
    """Takes the best of each row of a tile where it is better, or as good and earlier, than what was found."""
    best = cosines.argmax(axis=1)
    value = cosines[np.arange(len(best)), best]
    mine = slice(first, first + len(best))
    better = (value > cosine[mine]) | ((value == cosine[mine]) & (best + second < index[mine]))
    better &= np.isfinite(value)
    index[mine] = np.where(better, best + second, index[mine])
    cosine[mine] = np.where(better, value, cosine[mine])


def most_alike(found: Iterable[tuple[str, str, float]], count: int) -> list[tuple[str, str, float]]:
    """The `count` pairs of (concept, its nearest, cosine) with the largest cosines, each pair once."""
    pairs = {tuple(sorted((one, other))): cosine for one, other, cosine in found}
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [(one, other, cosine) for (one, other), cosine in ranked[:count]]


class Directions:
    """Directions of many words on disk, by their size D: only a tile of them is ever in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[int, list[int]] = {}

    def add(self, row: int, vectors: np.ndarray) -> None:
        """Adds the word of a row of the table. vectors: (V, D)."""
        found = direction(vectors)
        with (self._folder / f"{len(found)}.f32").open("ab") as file:
            file.write(found.astype(np.float32).tobytes())
        self._rows.setdefault(len(found), []).append(row)

    def nearest(self) -> dict[int, tuple[int, float]]:
        """Row -> (row of the nearest word of the same size, cosine); rows without another are absent."""
        found = {}
        for dim, rows in self._rows.items():
            path = self._folder / f"{dim}.f32"
            index, cosine = nearest(np.memmap(path, np.float32, "r", shape=(len(rows), dim)))
            for row, other, value in zip(rows, index.tolist(), cosine.tolist(), strict=True):
                if other >= 0:
                    found[row] = (rows[other], value)
        return found
