"""The manifest through Ray Data: rows are read, selected, split into small blocks and prepared on CPUs, as a stream.

The manifest's own reader reads them (`manifest/reader.py`): Ray Data's readers skip files by their names, and take
values from the names of folders.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from textinv_ray.concepts import prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.concepts.predicted_start import PredictedStart
from textinv_ray.concepts.settings import steps_of
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import row_bytes
from textinv_ray.manifest.batch import Batch
from textinv_ray.manifest.columns import plain_row
from textinv_ray.manifest.reader import Manifest, batches_of
from textinv_ray.service.intake.waves import Waves
from textinv_ray.service.models.sources import ModelFacts
from textinv_ray.service.scheduling.protocol import PreparedRow, shape_name
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UnreachableError, UserError
from textinv_ray.util.logs import about, log_to_stderr

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset

logger = logging.getLogger(__name__)

# A file is one block however many CPUs there are; a task should hold a few concepts only.
_ROWS_PER_BLOCK = 8
_ROWS_PER_LATE_BLOCK = 32  # rows that mostly wait for servers
_MOST_READERS = 200  # tasks that the parts of a manifest are shared out to
_READ_ROWS, _READ_BYTES = 8192, 64 * 2**20  # of a table that the reader hands on
_REST_S = 0.05  # between two steps of Ray Data's scheduler while rows wait for the consumer
_ROWS = pa.schema(
    {"concept_id": pa.string(), "steps": pa.int64(), "row": pa.large_binary(), "error": pa.string()}
)
"""Rows of the manifest on their way. One without a concept_id says why a part of the manifest can't be read."""
_PREPARED = pa.schema(
    {
        "concept_id": pa.string(),
        "steps": pa.int64(),
        "shape": pa.string(),
        "concept": pa.large_binary(),
        "error": pa.string(),
        "done": pa.bool_(),
        "put_off": pa.bool_(),
    }
)


class _Tried(PreparedRow):
    put_off: bool
    """Nothing came of it yet: a server couldn't be reached, or was slow. Another try may succeed."""


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
    waves: Waves | None = None
    """Those of the job."""

    def iter_rows(self, wanted: Collection[str]) -> Iterable[PreparedRow]:
        """Yields the prepared rows of the `wanted` concepts, made as they are asked for.

        Within a block of the manifest, those with most steps come first, so that none of them begins last. Rows whose
        images can't be reached at once come after all others: what they wait for must not hold others up. Then they are
        tried again for `data.download_retry_s` seconds. Raises UserError when the manifest can't be read, and at the
        end when it had no row for one of the concepts.
        """
        missing, put_off = set(wanted), []
        for row in self._pass(wanted, retry_until=None):
            if row["put_off"]:
                put_off.append(row["concept_id"])
            else:
                missing.discard(row["concept_id"])
                yield row
        if put_off:
            logger.warning("%d concepts with images that can't be reached: trying again", len(put_off))
            for row in self._pass(put_off, retry_until=time.time() + self.config.data.download_retry_s):
                missing.discard(row["concept_id"])
                yield row
        if missing:
            few = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
            raise UserError(
                f"planned {len(wanted)} concepts of the manifest, received {len(wanted) - len(missing)}: it has no row "
                f"any more for {few}. Was it changed meanwhile? The same command goes on from here"
            )

    def _pass(self, wanted: Collection[str], retry_until: float | None) -> Iterator[_Tried]:
        """One pass over the manifest. `retry_until`: end of the retries, in seconds since 1970; None: a first try."""
        for row in self._dataset(wanted, retry_until).iter_rows():
            if not row["concept_id"]:
                raise UserError(row["error"])
            yield row

    def _dataset(self, wanted: Collection[str], retry_until: float | None) -> Dataset:
        import ray

        from textinv_ray.service.cluster.ray_internals import reserve_for_repartition

        self._configure(ray.data.DataContext.get_current())
        cpus, parts = self.task_cpus, len(self.manifest.parts)
        numbers = ray.data.from_items(
            [{"part": number} for number in range(parts)], override_num_blocks=min(parts, _MOST_READERS)
        )
        numbers.set_name("textinv_concepts")
        rows = numbers.map_batches(
            self._reader(None if len(wanted) == self.manifest.num_rows else wanted),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=cpus,
        )
        size = _ROWS_PER_BLOCK if retry_until is None else _ROWS_PER_LATE_BLOCK
        rows = rows.repartition(target_num_rows_per_block=size)
        reserve_for_repartition(rows, cpus)

        def prepare_concepts(table: pa.Table) -> pa.Table:  # as Ray's dashboard calls it
            return self._prepare_block(table, retry_until)

        return rows.map_batches(
            prepare_concepts,
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=max(1, math.floor(self.config.service.prepare_cpus))),
            num_cpus=cpus,
        )

    def _configure(self, context: DataContext) -> None:
        from textinv_ray.service.cluster.ray_internals import rest_while_rows_wait

        context.enable_progress_bars = False
        # The scheduler may not ask for a row for hours, and that is no fault.
        context.execution_no_progress_timeout_s = -1
        rest_while_rows_wait(context, _REST_S)

    def _reader(self, wanted: Collection[str] | None) -> Callable[[pa.Table], Iterator[pa.Table]]:
        """A function that reads the manifest's parts with these numbers. `wanted`: None for all concepts."""
        columns = self.manifest.sound_columns()
        ids = pa.array(sorted(wanted), pa.string()) if wanted is not None else None

        def read_manifest(numbers: pa.Table) -> Iterator[pa.Table]:
            for number in numbers.column("part").to_pylist():
                try:
                    yield from _tables(self._rows_of(number, columns, ids))
                except UnreachableError:
                    raise  # the scheduler reads again
                except UserError as error:
                    yield pa.Table.from_pylist(
                        [{"concept_id": "", "steps": 0, "row": b"", "error": str(error)}], _ROWS
                    )

        return read_manifest

    def _rows_of(self, part: int, columns: list[str], ids: pa.Array | None) -> Iterator[dict[str, object]]:
        """A part's rows as `_ROWS`. `ids`: of the wanted concepts; None: all."""
        for records in batches_of(self.manifest.parts[part], columns, image_bytes=True):
            if ids is not None:
                records = records.filter(pc.is_in(Batch(records).ids, ids))
            for found in records.to_pylist():
                row = plain_row(found)
                steps = self.waves.steps_of(row, self.config) if self.waves else steps_of(row, self.config)
                data = row_bytes.encode(row)
                yield {"concept_id": row["concept_id"], "steps": steps, "row": data, "error": ""}

    def _prepare_block(self, table: pa.Table, retry_until: float | None) -> pa.Table:
        """Prepares a few rows side by side: most of their time they may wait for servers."""
        config = self.config
        log_to_stderr(config.service.log_format)
        if retry_until is not None:
            left = {"download_retry_s": max(0.0, retry_until - time.time())}
            config = config.model_copy(update={"data": config.data.model_copy(update=left)})
        rows = table.to_pylist()
        if not rows:
            return _PREPARED.empty_table()
        with ThreadPoolExecutor(len(rows)) as pool:
            prepared = list(
                pool.map(lambda row: self._prepare(row, config, is_first_try=retry_until is None), rows)
            )
        return pa.Table.from_pylist([dict(row) for row in prepared], _PREPARED)

    def _prepare(self, row: dict[str, object], config: JobConfig, *, is_first_try: bool) -> _Tried:
        """What is wrong with a row becomes its `error`."""
        data, concept_id, steps = row["row"], row["concept_id"], row["steps"]
        assert isinstance(data, bytes)
        assert isinstance(concept_id, str)
        assert isinstance(steps, int)
        unreadable = str(row["error"])
        tried = _Tried(
            concept_id=concept_id,
            steps=steps,
            shape="",
            concept=b"",
            error=unreadable,
            done=False,
            put_off=False,
        )
        if unreadable:
            return tried
        try:
            with about(concept_id):
                plain = row_bytes.decode(data)
                given = self.waves.start_of(plain, config) if self.waves else None
                concept = concept_of(plain, config, self.manifest.base, self.facts, is_first_try, given)
        except ImageError as error:
            if is_first_try and error.is_transient:
                return {**tried, "put_off": True}
            return {**tried, "error": str(error)}
        except ValueError as error:
            return {**tried, "error": str(error)}
        if concept_id in self.maybe_done:
            result = Store(self.output).result(concept_id)
            if result and result.fingerprint == concept.fingerprint:
                return {**tried, "done": True}
        return {**tried, "concept": concept.to_bytes(), "shape": shape_name(concept.shape)}


def concept_of(
    row: Mapping[str, object],
    config: JobConfig,
    base: str,
    facts: ModelFacts,
    is_first_try: bool = False,
    given: PredictedStart | None = None,
) -> Concept:
    """A row's concept for the model of `facts`; arguments and errors as of `prepare.make`."""
    return prepare.make(
        row,
        config,
        base=base,
        resolution=facts.resolution,
        model_identity=facts.identity,
        is_first_try=is_first_try,
        given=given,
        side_multiple=facts.family.side_multiple,
    )


def _tables(rows: Iterator[dict[str, object]]) -> Iterator[pa.Table]:
    """Tables of rows, the ones with most steps first, small enough to be held in memory."""
    some: list[dict[str, object]] = []
    size = 0

    def table() -> pa.Table:
        return pa.Table.from_pylist(some, _ROWS).sort_by([("steps", "descending")])

    for row in rows:
        some.append(row)
        size += len(row["row"])  # type: ignore[arg-type]
        if len(some) >= _READ_ROWS or size >= _READ_BYTES:
            yield table()
            some, size = [], 0
    yield table()
