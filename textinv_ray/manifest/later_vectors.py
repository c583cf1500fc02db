"""Finds words that programs would take for a part of another word.

diffusers loads a word of several vectors as several tokens: `<cat>`, `<cat>_1`, `<cat>_2`. A word of another row that
is called `<cat>_1` would be mixed up with the second vector of `<cat>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat

import pyarrow.compute as pc

from textinv_ray.config.training import TrainingConfig
from textinv_ray.manifest.batch import Batch, short
from textinv_ray.manifest.problem import Problem, place
from textinv_ray.manifest.reader import Manifest

_NUMBERED = re.compile(r"(.+)_([1-9][0-9]{0,3})", re.DOTALL)
_COLUMNS = ("concept_id", "placeholder_token", "num_vectors", "vectors_added_at")


class LaterVectors:
    """Looks for placeholder tokens that are those of another row's second or later vector."""

    def __init__(self, training: TrainingConfig) -> None:
        self._training = training
        self._bases: set[str] = set()
        """What stands before the number in tokens such as `<cat>_1`, in lower case."""

    def add(self, batch: Batch) -> None:
        """Notes the tokens of the next batch that end with a number."""
        for _, base, _ in _numbered(batch):
            self._bases.add(base)

    def problems(self, manifest: Manifest) -> Iterator[Problem]:
        """A problem for each such row. To be called when all batches were added."""
        if not self._bases:
            return
        columns = [name for name in manifest.sound_columns() if name in _COLUMNS]
        words: dict[str, tuple[int, str]] = {}  # token -> number of its vectors, its place
        for part, first, records in manifest.placed_batches(columns):
            batch = Batch(records)
            tokens = pc.utf8_lower(batch.placeholders).to_pylist()
            for index, (token, count) in enumerate(zip(tokens, self._vectors(batch), strict=True)):
                if token in self._bases:
                    words.setdefault(token, (count, place(part, first + index)))
        for part, first, records in manifest.placed_batches(columns):
            batch = Batch(records)
            for index, base, number in _numbered(batch):
                count, other = words.get(base, (0, ""))
                if number < count:
                    token = short(batch.placeholders[index].as_py())
                    message = f"{token} is what diffusers calls vector {number + 1} of the word of {other}"
                    concept_id = batch.ids[index].as_py()
                    yield Problem(
                        first + index, concept_id, "placeholder_token", f"{message}: use another", part
                    )

    def _vectors(self, batch: Batch) -> Iterator[int]:
        """The number of vectors of each row's word, those that join it later included."""
        given, added = batch.column("num_vectors"), batch.column("vectors_added_at")
        counts = repeat(None, len(batch)) if given is None else given.to_pylist()
        later = repeat(None, len(batch)) if added is None else added.to_pylist()
        for count, steps in zip(counts, later, strict=True):
            steps = self._training.vectors_added_at if steps is None else steps
            yield int(self._training.num_vectors if count is None else count) + len(steps)


def _numbered(batch: Batch) -> Iterator[tuple[int, str, int]]:
    """(row of the batch, what stands before the number, number) of each token that ends with one."""
    tokens = pc.utf8_lower(batch.placeholders)
    ends = pc.fill_null(pc.match_substring_regex(tokens, "_[1-9][0-9]{0,3}$"), False)
    for index in pc.indices_nonzero(ends).to_pylist():
        found = _NUMBERED.fullmatch(tokens[index].as_py())
        if found:
            yield index, found.group(1), int(found.group(2))
