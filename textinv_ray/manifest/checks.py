"""Checks a whole manifest: its columns, each row, and what only all rows together show.

Reads the manifest as a stream of record batches; memory grows by 16 bytes per row, the hashes that find duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import duplicates
from textinv_ray.manifest.batch import Batch
from textinv_ray.manifest.problem import Problem, raise_problems
from textinv_ray.manifest.reader import Manifest
from textinv_ray.manifest.row_checks import check_rows
from textinv_ray.manifest.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def check(manifest: Manifest, config: JobConfig, tokenizers: Sequence[PreTrainedTokenizerBase] = ()) -> None:
    """Raises UserError if the manifest has problems: it lists the first 50 and counts the rest.

    `tokenizers`: the model's. Without them, words are not compared with the model's vocabulary.
    """
    raise_problems(manifest.uri, problems(manifest, config, tokenizers))


def problems(
    manifest: Manifest, config: JobConfig, tokenizers: Sequence[PreTrainedTokenizerBase] = ()
) -> Iterator[Problem]:
    """Streams all problems: first those of columns, then those of the rows, as far as their columns can be read."""
    yield from manifest.schema_problems()
    yield from row_problems(manifest, config, tokenizers)


def row_problems(
    manifest: Manifest, config: JobConfig, tokenizers: Sequence[PreTrainedTokenizerBase] = ()
) -> Iterator[Problem]:
    """Streams the problems of the rows batch by batch, and at the end those of duplicates."""
    columns = manifest.sound_columns()
    vocabulary = Vocabulary(tokenizers) if tokenizers else None
    unique = duplicates.of_manifest()
    unreadable = set(manifest.schema.names) - set(columns)
    first = 0
    for batch in map(Batch, manifest.batches(columns)):
        for index, column, message in check_rows(batch, manifest.base, config, vocabulary, unreadable):
            yield Problem(first + index, batch.ids[index].as_py(), column, message)
        for values in unique:
            values.add(batch)
        first += len(batch)
    for values in unique:
        yield from values.problems(manifest)
