"""The function that Ray Train runs in each worker process."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


def train_loop(setup: dict[str, Any]) -> None:
    """Learns until nothing is left. `setup`: see `worker.start`.

    Imports late: Train's controllers load this function, too, but need neither torch nor models.
    """
    if setup["scheduler"].is_over():
        return  # restarted when all is done: no need to load a model
    try:
        from textinv_ray.service.worker import worker

        ready = worker.start(setup)
    except Exception as error:
        logger.exception("this worker can't start")
        setup["scheduler"].failed_to_start(str(error) or type(error).__name__)
        raise
    ready.run()
