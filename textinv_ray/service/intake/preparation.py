"""The manifest through Ray Data: rows are read, selected, split into small blocks and prepared on CPUs, as a stream."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec

from textinv_ray.concepts import prepare
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models.sources import ModelFacts
from textinv_ray.service.scheduling.protocol import PreparedRow
from textinv_ray.service.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import DataContext, Dataset

# A file is one block however many CPUs there are; a task should hold a few concepts only.
_ROWS_PER_BLOCK = 8
_REST_S = 0.05  # between two steps of Ray Data's scheduler while rows wait for the consumer


@dataclass(frozen=True)
class Preparation:
    """Makes concepts of a manifest's rows. The scheduler's process holds it and pulls rows out of it."""

    manifest: Manifest
    config: JobConfig
    facts: ModelFacts
    output: str
    """URI of the store."""
    maybe_done: Collection[str]
    """Concepts with a result in the store, of this or of another fingerprint."""
    task_cpus: float
    """CPUs that one of its tasks reserves."""

    def iter_rows(self, wanted: Collection[str]) -> Iterable[PreparedRow]:
        """Yields the prepared rows of the `wanted` concepts, made as they are asked for.

        Within a block of the manifest, those with most steps come first, so that none of them begins last.
        """
        return self._dataset(wanted).iter_rows()

    def _dataset(self, wanted: Collection[str]) -> Dataset:
        import ray

        from textinv_ray.service.cluster.ray_internals import reserve_for_repartition

        self._configure(ray.data.DataContext.get_current())
        uri = self.manifest.uri
        if "://" not in uri:  # relative to the driver's working directory, which isn't the scheduler's
            uri = os.path.join(self.manifest.base, os.path.basename(uri))
        fs, path = fsspec.core.url_to_fs(uri)
        columns, cpus = self.manifest.sound_columns(), self.task_cpus
        rows = ray.data.read_parquet(path, filesystem=fs, columns=columns, num_cpus=cpus)
        rows = rows.map_batches(
            _picker(
                None if len(wanted) == self.manifest.num_rows else wanted,
                self.config.training.steps if "steps" in columns else None,
            ),
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
            num_cpus=cpus,
        )
        rows = rows.repartition(target_num_rows_per_block=_ROWS_PER_BLOCK)
        reserve_for_repartition(rows, cpus)
        return rows.map(
            self._prepare,
            compute=ray.data.TaskPoolStrategy(size=max(1, math.floor(self.config.service.prepare_cpus))),
            num_cpus=cpus,
        )

    def _configure(self, context: DataContext) -> None:
        from textinv_ray.service.cluster.ray_internals import rest_while_rows_wait

        context.enable_progress_bars = False
        # The scheduler may not ask for a row for hours, and that is no fault.
        context.execution_no_progress_timeout_s = -1
        context.use_datasource_v2 = False  # its listing of files takes a whole CPU, whatever is asked for
        rest_while_rows_wait(context, _REST_S)

    def _prepare(self, row: Mapping[str, Any]) -> PreparedRow:
        """Runs in a task of its own for each row. What is wrong with a row becomes its `error`."""
        concept_id = str(row["concept_id"])
        prepared: PreparedRow = {
            "concept_id": concept_id,
            "steps": int(row.get("steps") or self.config.training.steps),
            "concept": b"",
            "error": "",
            "done": False,
        }
        try:
            concept = prepare.make(
                row,
                self.config,
                base=self.manifest.base,
                resolution=self.facts.resolution,
                model_identity=self.facts.identity,
            )
        except (ImageError, ValueError) as error:
            return {**prepared, "error": str(error)}
        if concept_id in self.maybe_done:
            result = Store(self.output).result(concept_id)
            if result and result.fingerprint == concept.fingerprint:
                return {**prepared, "done": True}
        return {**prepared, "concept": concept.to_bytes()}


def _picker(concept_ids: Collection[str] | None, steps: int | None) -> Callable[[pa.Table], pa.Table]:
    """A function that keeps the rows of these concepts (None: all) and sorts them by steps, the most first.

    `steps`: of rows that name none; None: the manifest has no such column, and rows keep their order.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(concept_ids), pa.string()) if concept_ids is not None else None

    def pick(table: pa.Table) -> pa.Table:
        if wanted is not None:
            table = table.filter(pc.is_in(pc.cast(table["concept_id"], pa.string()), wanted))
        if steps is None:
            return table
        return table.take(
            pc.array_sort_indices(pc.negate(pc.fill_null(table["steps"], steps)).combine_chunks())
        )

    return pick
