"""A pool of actors that each hold a model and work through a table: `generate` and `evaluate` run on it.

Ray Data streams blocks of the table to the actors. An actor writes what it made to the store and returns one small
row for each row of its block. When an actor dies, another one gets its block from the start, so actors skip rows
whose result the store has already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import message

logger = logging.getLogger(__name__)

_BLOCKS_PER_WORKER = 4  # so that none is left with one long block at the end


class PoolError(Exception):
    """The actors can't go on; the message is one line."""


def run(
    table: pa.Table,
    actor: type,
    arguments: Mapping[str, Any],
    config: JobConfig,
    console: Console,
    *,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Yields the rows that instances of `actor` return for batches of `table`, as they come, in no fixed order.

    `actor`: a class, called with `arguments`; its instances take a pyarrow Table and return one. `batch_size`: the
    most rows that an instance gets at once. Connects to a Ray and disconnects at the end. Raises UserError when no
    Ray can be had, or no GPU for a configuration that needs one; PoolError when an actor can't start or fails.
    """
    import ray
    from ray.data import ActorPoolStrategy

    from textinv_ray.service.cluster import connection
    from textinv_ray.service.cluster.layout import WorkerLayout, resources_for

    connection.connect(config, console)
    try:
        layout = WorkerLayout.of(config, resources_for(config, ray.nodes()), len(table))
        console.print(f"workers: {layout}")
        ray.data.DataContext.get_current().enable_progress_bars = False
        per_block = max(1, min(batch_size, len(table) // (_BLOCKS_PER_WORKER * layout.workers)))
        blocks = [table.slice(start, per_block) for start in range(0, len(table), per_block)]
        rows = ray.data.from_arrow(blocks).map_batches(
            actor,
            fn_constructor_kwargs=dict(arguments),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=layout.workers),
            num_cpus=layout.cpus,
            **({"num_gpus": layout.gpus} if layout.gpus else {}),
            **_placement(config),
        )
        yield from rows.iter_rows()
    except UserError:
        raise
    except Exception as error:
        logger.exception("the pool of actors failed")
        raise PoolError(_reason(error)) from error
    finally:
        ray.shutdown()


def _placement(config: JobConfig) -> dict[str, Any]:
    """Options of the actors: on which nodes they run. Ray itself takes a fallback where a selector fits no node."""
    service = config.service
    if not service.label_selector:
        return {}
    others = [{"label_selector": selector} for selector in service.fallback_label_selectors]
    return {"label_selector": service.label_selector, **({"fallback_strategy": others} if others else {})}


def _reason(error: Exception) -> str:
    """The last line of Ray's message: the error itself, below the tracebacks of all processes it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return message(last.removeprefix(f"{UserError.__module__}.UserError: "))
