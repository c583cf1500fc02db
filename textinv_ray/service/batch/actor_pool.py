"""Rows through a pool of actors that each hold a model: what generation and evaluation of many run on.

Ray Data streams blocks of a table to the actors. An actor puts what it made into the store and returns one small
row for each of its rows. When one dies, its block goes to another from the start: an actor passes over what lies in
the store already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact_text

logger = logging.getLogger(__name__)

_BLOCKS_PER_WORKER = 4  # so that none is left with one long block at the end


class PoolError(Exception):
    """The workers can't go on; one line says why."""


def run(
    table: pa.Table,
    actor: type,
    arguments: Mapping[str, Any],
    config: JobConfig,
    console: Console,
    *,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Yields the rows that `actor(**arguments)` returns for batches of `table` (pyarrow Tables), as they come.

    `batch_size`: the most rows an actor gets at once. Joins or starts a Ray, and leaves it in the end.
    Raises UserError where there is no Ray, or no GPU for a configuration that wants one; PoolError when actors
    can't start or fail.
    """
    import ray
    from ray.data import ActorPoolStrategy

    from textinv_ray.service.cluster import connection
    from textinv_ray.service.cluster.layout import WorkerLayout

    connection.connect(config, console)
    try:
        size = WorkerLayout.of(config, ray.cluster_resources(), len(table))
        console.print(f"workers: {size}")
        ray.data.DataContext.get_current().enable_progress_bars = False
        per_block = max(1, min(batch_size, len(table) // (_BLOCKS_PER_WORKER * size.workers)))
        blocks = [table.slice(start, per_block) for start in range(0, len(table), per_block)]
        rows = ray.data.from_arrow(blocks).map_batches(
            actor,
            fn_constructor_kwargs=dict(arguments),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=size.workers),
            num_cpus=size.cpus,
            **({"num_gpus": size.gpus} if size.gpus else {}),
        )
        yield from rows.iter_rows()
    except UserError:
        raise
    except Exception as error:
        logger.exception("the pool of workers failed")
        raise PoolError(_reason(error)) from error
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    """The last line of what Ray says: the error itself, below the tracebacks of all processes it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return redact_text(last.removeprefix(f"{UserError.__module__}.UserError: "))
