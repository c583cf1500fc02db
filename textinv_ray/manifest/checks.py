"""Checks a whole manifest: its columns, each row, and what only all rows together show.

Reads the manifest as a stream of record batches; memory grows by 16 bytes per row, the hashes that find duplicates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import duplicates
from textinv_ray.manifest.batch import Batch
from textinv_ray.manifest.later_vectors import LaterVectors
from textinv_ray.manifest.limit_checks import over_limits
from textinv_ray.manifest.problem import Problem, raise_problems
from textinv_ray.manifest.prompt_checks import PromptChecks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.manifest.row_checks import check_rows, without_context
from textinv_ray.manifest.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from textinv_ray.config.model_families import ModelFamily


def check(
    manifest: Manifest,
    config: JobConfig,
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    *,
    family: ModelFamily | None = None,
    image_bytes: bool = False,
) -> None:
    """Raises UserError if the manifest has problems: it lists the first 50 and counts the rest.

    `tokenizers`: the model's, by text encoder. Without them, words are not compared with the model's vocabulary.
    `family`: of the model; without it, columns aren't compared with what its models can do.
    `image_bytes`: reads the bytes of embedded images as well, to find those that can't be read or aren't there.
    """
    raise_problems(
        manifest.uri, problems(manifest, config, tokenizers, family=family, image_bytes=image_bytes)
    )


def problems(
    manifest: Manifest,
    config: JobConfig,
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    *,
    family: ModelFamily | None = None,
    image_bytes: bool = False,
) -> Iterator[Problem]:
    """Streams all problems: first those of columns, then those of the rows, as far as their columns can be read."""
    yield from manifest.schema_problems()
    yield from row_problems(manifest, config, tokenizers, family=family, image_bytes=image_bytes)


def row_problems(
    manifest: Manifest,
    config: JobConfig,
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    *,
    family: ModelFamily | None = None,
    image_bytes: bool = False,
) -> Iterator[Problem]:
    """Streams the problems of the rows batch by batch, and at the end those of duplicates."""
    columns = manifest.sound_columns()
    vocabulary = Vocabulary(tokenizers) if tokenizers else None
    unique: list[duplicates.Duplicates | LaterVectors] = [
        *duplicates.of_manifest(),
        LaterVectors(config.training),
    ]
    prompts = PromptChecks(config, vocabulary) if vocabulary is not None else None
    unreadable = manifest.unsound_columns()
    for part, first, records in manifest.placed_batches(columns, image_bytes=image_bytes):
        batch = Batch(records, image_bytes=image_bytes)
        found = [check_rows(batch, manifest.base, config, vocabulary, unreadable), over_limits(batch)]
        found += [prompts.problems(batch)] if prompts else []
        found += [without_context(batch, config.training, family)] if family else []
        for index, column, message in itertools.chain(*found):
            yield Problem(first + index, batch.ids[index].as_py(), column, message, part)
        for values in unique:
            values.add(batch)
    for values in unique:
        yield from values.problems(manifest)
