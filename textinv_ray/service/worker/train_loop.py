"""The function that Ray Train runs in each worker process."""

from __future__ import annotations

from typing import Any


def train_loop(setup: dict[str, Any]) -> None:
    """Learns until nothing is left. `setup`: see `worker.learn`.

    Imports late: Train's controllers load this function, too, but need neither torch nor models.
    """
    if setup["scheduler"].is_over():
        return  # restarted when all is done: no need to load a model
    from textinv_ray.service.worker import worker

    worker.learn(setup)
