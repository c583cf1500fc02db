"""How similar learned words are: the cosine of the means of their vectors, as for the vocabulary's words.

Two concepts whose words are nearly equal are a duplicate in the catalogue, or were learned from the same images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from textinv_ray.concepts.word_files import Word

_TILE = 512  # words: a tile of cosines is 1 MiB, which stays in a core's cache


def direction(word: Word) -> np.ndarray:
    """Mean of a word's vectors, of length 1 (or 0): float32 (D,).

    With E text encoders, the mean of each part has length 1 / sqrt(E): so the cosine of two words is the mean of the
    encoders' cosines, whatever the norms of their vocabularies are.
    """
    parts = []
    for vectors in word.values():
        mean = np.asarray(vectors, np.float32).mean(axis=0)
        norm = float(np.linalg.norm(mean)) * float(np.sqrt(len(word)))
        parts.append(mean / norm if norm else mean)
    return np.concatenate(parts)


def nearest(directions: np.ndarray, tile: int = _TILE) -> tuple[np.ndarray, np.ndarray]:
    """For each word the other word with the largest cosine: int64 (N,), -1 if there is none, and float32 (N,).

    directions: float32 (N, D) of length 1; a memory map will do. Of equal cosines the first word counts. Each pair
    is computed once: N^2 D / 2 multiplications, with 2 tile D + tile^2 numbers in memory.
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
    """Takes the best of each row of a tile where it is better than what was found among earlier words.

    Most rows are not improved by most tiles, so the position of the best, which is dear, is looked up for few.
    """
    best = cosines.max(axis=1)
    better = np.flatnonzero(best > cosine[first : first + len(best)])
    index[first + better] = second + cosines[better].argmax(axis=1)
    cosine[first + better] = best[better]


def most_alike(found: Iterable[tuple[str, str, float]], count: int) -> list[tuple[str, str, float]]:
    """The `count` pairs of (concept, its nearest, cosine) with the largest cosines, each pair once."""
    pairs = {tuple(sorted((one, other))): cosine for one, other, cosine in found}
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [(one, other, cosine) for (one, other), cosine in ranked[:count]]


class StoredWords:
    """Vectors of many words in a temporary file, by the row of the table that they belong to."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for the temporary files."""
        self._folder = folder
        self._places: dict[int, tuple[int, int, int]] = {}
        """Row -> (place of its first number, V, D)."""
        self._rows: dict[int, list[int]] = {}
        """D -> rows of the words of that size, in the order of their directions."""
        self._size = 0
        self._files = contextlib.ExitStack()
        self._vectors = self._files.enter_context(self._path("vectors").open("w+b"))
        self._directions: dict[int, BinaryIO] = {}

    def __enter__(self) -> StoredWords:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, row: int, word: Word) -> None:
        """Adds the word of a row."""
        vectors = np.concatenate(list(word.values()), axis=1)
        count, dim = vectors.shape
        self._vectors.write(vectors.tobytes())
        self._places[row] = (self._size, count, dim)
        self._size += count * dim
        if dim not in self._directions:
            self._directions[dim] = self._files.enter_context(self._path(str(dim)).open("w+b"))
        self._directions[dim].write(direction(word).tobytes())
        self._rows.setdefault(dim, []).append(row)

    def vectors(self, row: int) -> np.ndarray | None:
        """The word of a row, float32 (V, D); none when it has none."""
        if row not in self._places:
            return None
        place, count, dim = self._places[row]
        return self._all[place : place + count * dim].reshape(count, dim)

    @cached_property
    def _all(self) -> np.ndarray:
        self._vectors.flush()
        return np.memmap(self._path("vectors"), np.float32, "r", shape=(self._size,))

    def nearest(self) -> dict[int, tuple[int, float]]:
        """Row -> (row of the nearest word of the same D, cosine); rows without another are absent."""
        found = {}
        for dim, rows in self._rows.items():
            self._directions[dim].flush()
            index, cosine = nearest(np.memmap(self._path(str(dim)), np.float32, "r", shape=(len(rows), dim)))
            for row, other, value in zip(rows, index.tolist(), cosine.tolist(), strict=True):
                if other >= 0:
                    found[row] = (rows[other], value)
        return found

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.f32"
