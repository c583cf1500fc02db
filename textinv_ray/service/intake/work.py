"""What a manifest asks for, for estimates: each row's steps from where it starts. Needs neither Ray nor a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from textinv_ray.concepts import settings
from textinv_ray.concepts.predictor import MIN_WORDS
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.columns import Row, plain_row
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake import waves
from textinv_ray.sizing.estimates import Learning, Work

_COLUMNS = ("concept_id", "images", "steps", "batch_size", "initializer_token", "init_from", "num_vectors")


def of(manifest: Manifest, config: JobConfig) -> Work:
    """Reads the columns that learning takes time by, nothing else: images aren't opened.

    With `service.waves`, rows after the first part count as predicted ones, where that part has words enough with as
    many vectors.
    """
    first = None if config.service.waves.first is None else waves.first_part(manifest, config)
    known = _rows(manifest, ("concept_id", "num_vectors"))
    counts = Counter(_count(row, config) for row in known if first and row["concept_id"] in first)

    def is_later(row: Row) -> bool:
        if first is None or row["concept_id"] in first or row.get("init_from"):
            return False
        return counts[_count(row, config)] >= MIN_WORDS

    return Work.of((_learning(row, config, is_later(row)) for row in _rows(manifest, _COLUMNS)), config)


def _learning(row: Row, config: JobConfig, is_later: bool) -> Learning:
    start = waves.predicted(row) if is_later else row
    return Learning(
        len(row["images"]),
        row.get("batch_size", config.training.batch_size),
        settings.steps_of(start, config),
        settings.min_steps_of(start, config),
        int(is_later),
    )


def _rows(manifest: Manifest, wanted: Sequence[str]) -> Iterator[Row]:
    columns = [name for name in wanted if name in set(manifest.sound_columns())]
    return (plain_row(row) for batch in manifest.batches(columns) for row in batch.to_pylist())


def _count(row: Row, config: JobConfig) -> int:
    """Vectors of a row's word."""
    return row.get("num_vectors", config.training.num_vectors)
