"""Waves: the first part of a job's concepts is learned plainly, a predictor is fitted on these words, and the rest
starts from what it predicts.

The first part is drawn by `training.seed` and the ids alone. Once the predictor was fitted, the output's waves.json
says which concepts were in it: rows that come later start from the same predictor. See `driver/waves.py`.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from dataclasses import dataclass

from textinv_ray.concepts import settings
from textinv_ray.concepts.predicted_start import PredictedStart
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.columns import Row, plain_row
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models.sources import ModelFacts
from textinv_ray.service.store.records import WAVES, WavesRecord
from textinv_ray.service.store.store import Store
from textinv_ray.util.redact import redact_values


@dataclass(frozen=True)
class Waves:
    """Which of a job's concepts start from a predictor that the job fits."""

    key: str
    """Digest of what the first part's words depend on, apart from rows: settings, model and size."""
    first: frozenset[str]
    """Concepts that are learned plainly. The predictor is fitted on their words."""
    decided: bool = False
    """Whether the rest can begin: the predictor was fitted, or it was found to be no use."""
    start: PredictedStart | None = None
    """The predictor; None: not fitted, or no use."""

    def waits(self, row: Row) -> bool:
        """Whether the row can begin only once the predictor is fitted."""
        return not self.decided and self._is_later(row)

    def start_of(self, row: Row, config: JobConfig) -> PredictedStart | None:
        """The predictor, where the row starts from it; None where the row begins as without waves."""
        if self.start is None or not self._is_later(row):
            return None
        count = row.get("num_vectors", config.training.num_vectors)
        return self.start if count in self.start.predictor.counts else None

    def steps_of(self, row: Row, config: JobConfig) -> int:
        """Optimizer steps of a row, from wherever it starts; of one that waits, from a prediction."""
        is_predicted = self.waits(row) or self.start_of(row, config) is not None
        return settings.steps_of(predicted(row) if is_predicted else row, config)

    def _is_later(self, row: Row) -> bool:
        return row["concept_id"] not in self.first and not row.get("init_from")


def predicted(row: Row) -> Row:
    """The row as it starts from a predictor, whichever that is: for its settings, not for its fingerprint."""
    return plain_row({**row, "init_from": "predictor.safetensors"})


def read(store: Store, manifest: Manifest, config: JobConfig, facts: ModelFacts) -> Waves | None:
    """The waves of a job, by its output's waves.json where that is of these settings; None for a job without them.

    Raises StoreError.
    """
    if config.service.waves.first is None:
        return None
    key = _key(config, facts)
    record = store.record(WavesRecord, WAVES)
    if record is not None and record.key == key:
        start = _read_start(store, record.predictor) if record.predictor else None
        if start is not None or not record.predictor:
            return Waves(key, frozenset(record.first), True, start)
    return Waves(key, first_part(manifest, config))


def first_part(manifest: Manifest, config: JobConfig) -> frozenset[str]:
    """Ids of `service.waves.first` concepts without an `init_from` of their own; of all when there are fewer.

    By the seed and each id alone: neither the order of rows nor other columns matter, and a row more or less changes
    the part by one concept at most.
    """
    wanted = config.service.waves.first or 0
    columns = [name for name in manifest.sound_columns() if name in ("concept_id", "init_from")]
    ids = (
        row["concept_id"]
        for batch in manifest.batches(columns)
        for row in batch.to_pylist()
        if not row.get("init_from")
    )

    def rank(concept_id: str) -> bytes:
        return hashlib.sha256(f"waves\n{config.training.seed}\n{concept_id}".encode()).digest()

    return frozenset(heapq.nsmallest(wanted, ids, key=rank))


def write(store: Store, decided: Waves, words: int, why: str) -> None:
    """Writes the predictor, if there is one, and waves.json, which says that the rest can begin.

    `words`: how many it was fitted on. `why`: the reason when there is no predictor. Raises StoreError.
    """
    name = ""
    if decided.start is not None:
        name = decided.start.name
        store.write(name, decided.start.data)
    first = tuple(sorted(decided.first))
    record = WavesRecord(key=decided.key, first=first, predictor=name, words=words, why=why)
    store.write(WAVES, record.to_bytes())


def forget(store: Store) -> None:
    """Removes a waves.json of other settings. Raises StoreError."""
    store.remove(WAVES)


def _key(config: JobConfig, facts: ModelFacts) -> str:
    depends = [redact_values(config.result_inputs()), facts.identity, config.service.waves.first]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _read_start(store: Store, name: str) -> PredictedStart | None:
    """The predictor of this name; None when it is missing or damaged: then it is fitted again."""
    data = store.read(name)
    if data is None or PredictedStart(data).name != name:
        return None
    return PredictedStart(data)
