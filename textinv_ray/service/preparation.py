"""The manifest through Ray Data: read, filter, split, and prepare on CPUs, streamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec

from textinv_ray import prepare
from textinv_ray.config import JobConfig
from textinv_ray.images import ImageError
from textinv_ray.manifest import Manifest
from textinv_ray.service.models import ModelFacts
from textinv_ray.service.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_ROWS_PER_BLOCK = (
    8  # A file is one block however many CPUs there are; a task should hold a few concepts only.
)


@dataclass(frozen=True)
class Wanted:
    """Which rows to prepare."""

    concept_ids: Collection[str] | None
    """None: all."""
    maybe_done: Collection[str]
    """Concepts with a result in the store, of this or of another fingerprint."""


def dataset(
    manifest: Manifest, config: JobConfig, facts: ModelFacts, output: str, wanted: Wanted, *, task_cpus: float
) -> Dataset:
    """Rows {concept_id, steps, concept, error, done}, made as they are asked for.

    concept: `Concept.to_row()`'s bytes; empty when `error` says why it can't be made, or when `done`.
    task_cpus: CPUs that one of its tasks reserves.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # its listing of files takes a whole CPU, whatever is asked for
    fs, path = fsspec.core.url_to_fs(manifest.uri)
    rows = ray.data.read_parquet(path, filesystem=fs, columns=manifest.sound_columns(), num_cpus=task_cpus)
    if wanted.concept_ids is not None:
        rows = rows.map_batches(
            _picker(wanted.concept_ids),
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
            num_cpus=task_cpus,
        )
    rows = rows.repartition(target_num_rows_per_block=_ROWS_PER_BLOCK)
    # It has no argument for this, and would wait forever for a whole CPU where workers hold them all.
    rows._logical_plan.dag.ray_remote_args["num_cpus"] = task_cpus
    return rows.map(
        _preparer(manifest.base, config, facts, output, wanted.maybe_done),
        compute=ray.data.TaskPoolStrategy(size=max(1, math.floor(config.service.prepare_cpus))),
        num_cpus=task_cpus,
    )


def _picker(concept_ids: Collection[str]) -> Callable[[pa.Table], pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(concept_ids), pa.string())

    def pick(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(pc.cast(table["concept_id"], pa.string()), wanted))

    return pick


def _preparer(
    base: str, config: JobConfig, facts: ModelFacts, output: str, maybe_done: Collection[str]
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def prepare_row(row: Mapping[str, Any]) -> dict[str, Any]:
        concept_id = str(row["concept_id"])
        prepared = {
            "concept_id": concept_id,
            "steps": int(row.get("steps") or config.training.steps),
            "concept": b"",
            "error": "",
            "done": False,
        }
        try:
            concept = prepare.make(
                row, config, base=base, resolution=facts.resolution, model_identity=facts.identity
            )
        except (ImageError, ValueError) as error:
            return {**prepared, "error": str(error)}
        if concept_id in maybe_done:
            result = Store(output).result(concept_id)
            if result and result["fingerprint"] == concept.fingerprint:
                return {**prepared, "done": True}
        return {**prepared, "concept": concept.to_row()["concept"]}

    return prepare_row
