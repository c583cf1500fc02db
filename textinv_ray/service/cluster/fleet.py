"""The workers: several small trainers, each a group of workers that live and die together.

One trainer of many workers would restart them all whenever one dies. Small ones are a blast radius each,
start as soon as their node is there, and free their GPUs when nothing is left for them. One that ends early is
started again: at once when it ended in good order and there is work, later and later when it failed.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import ray

from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster.actors import on_this_node
from textinv_ray.service.cluster.layout import WorkerLayout
from textinv_ray.service.cluster.ray_internals import (
    PREEMPTION_WATCHER,
    WORKER_HEALTH_CHECK_TIMEOUT_S,
    free_reservations_of_the_dead,
    without_process_group,
)
from textinv_ray.util.quiet import QUIET

logger = logging.getLogger(__name__)

_BACKOFF_S = (2.0, 120.0)  # first and longest wait before a failed trainer is started again
_QUICK_S = 60.0  # a trainer that fails sooner had no chance to learn
_QUICK_ENDS = 5  # so many of them in a row, and it is given up
_POLL_S = 2.0
_FREE_EVERY_S = 5.0

TrainLoop = Callable[[dict[str, Any]], None]


class WorkSource(Protocol):
    """What a fleet asks the scheduler: a `SchedulerInterface`. Travels to the workers, so it must be picklable."""

    def is_over(self) -> bool:
        """Whether there is nothing more to do for any worker."""

    def wants_workers(self) -> bool:
        """Whether a concept waits for a worker, or more may come."""


class Fleet:
    """An actor whose threads each run one long `fit`: starting one takes many seconds.

    In a process of its own, because a `fit` can't be ended from outside, only killed with its process: when all
    is over, some may still wait for a node that never comes.
    """

    def __init__(
        self,
        train_loop: TrainLoop,
        size: WorkerLayout,
        config: JobConfig,
        scheduler: WorkSource,
        output: str,
        storage: str,
    ) -> None:
        """`train_loop`: what each worker runs, with {"scheduler", "config", "output"}.

        `storage`: a local folder for what Ray Train insists on writing; results don't go there.
        """
        self._train_loop = train_loop
        self._config = config
        self._size = size
        self._storage = storage
        self._scheduler = scheduler
        # Ray shows what its trainers are given; where MLflow is, and with which password, is no worker's business.
        self._setup = {
            "scheduler": scheduler,
            "config": {**config.to_dict(), "tracking": {}},
            "output": output,
        }
        self._errors: list[str] = []
        self._threads = []
        threading.Thread(target=self._free, name="free", daemon=True).start()
        group = config.service.workers_per_trainer
        for start in range(0, size.workers, group):
            workers = min(group, size.workers - start)
            thread = threading.Thread(target=self._run, args=(workers,), name=f"trainer-{start}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def state(self) -> tuple[int, str]:
        """(trainers that are still there, why others were given up)."""
        return sum(thread.is_alive() for thread in self._threads), "; ".join(self._errors)

    def _free(self) -> None:
        while True:
            try:
                free_reservations_of_the_dead()
            except Exception:
                logger.exception("what dead trainers reserved can't be found out")
            time.sleep(_FREE_EVERY_S)

    def _run(self, workers: int) -> None:
        """Keeps one trainer going until the job is over."""
        wait, quick_ends = _BACKOFF_S[0], 0
        while not self._scheduler.is_over():
            began = time.monotonic()
            try:
                self._trainer(workers).fit()
                wait, quick_ends = _BACKOFF_S[0], 0
                # Its workers were released, or their node is about to go.
                while not self._scheduler.wants_workers():
                    if self._scheduler.is_over():
                        return
                    time.sleep(_POLL_S)
            except Exception as error:
                logger.exception("a trainer ended")
                is_quick = time.monotonic() - began < _QUICK_S
                wait, quick_ends = (2 * wait, quick_ends + 1) if is_quick else (_BACKOFF_S[0], 0)
                if quick_ends >= _QUICK_ENDS:
                    self._errors.append(str(error))
                    return
            time.sleep(min(wait, _BACKOFF_S[1]))

    def _trainer(self, workers: int) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        gpus = {"GPU": self._size.gpus} if self._size.gpus else {}
        return TorchTrainer(
            self._train_loop,
            train_loop_config=self._setup,
            torch_config=without_process_group(),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": self._size.cpus, **gpus},
            ),
            run_config=RunConfig(
                # A name of its own: Train would take up what a run of the same name left.
                name=f"workers-{uuid.uuid4().hex[:8]}",
                storage_path=self._storage,
                failure_config=FailureConfig(max_failures=-1),
                worker_runtime_env={"env_vars": _environment(self._config)},
            ),
        )


def _environment(config: JobConfig) -> dict[str, str]:
    """Variables of the worker processes: Train passes on only a few of the driver's."""
    threads = str(max(1, round(config.service.cpus_per_worker)))
    return {**QUIET, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def start_fleet(
    train_loop: TrainLoop,
    size: WorkerLayout,
    config: JobConfig,
    scheduler: WorkSource,
    output: str,
    storage: str,
) -> Any:
    """The Fleet actor."""
    actor: Any = ray.remote(Fleet)
    environment = {
        **QUIET,
        # Train's controllers and their helpers inherit these. One helper asks the dashboard whether its controller
        # lives; without an address it looks for a Ray on its machine, and fails or asks another one if there are two.
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        # Train's watcher would restart a whole group when a node is about to go;
        # leases do what is needed.
        PREEMPTION_WATCHER: "0",
        # A hung worker has lost its lease by then; its group is started anew.
        WORKER_HEALTH_CHECK_TIMEOUT_S: str(max(30.0, 2 * config.service.lease_timeout_s)),
    }
    options = {"max_concurrency": 2, "runtime_env": {"env_vars": environment}, **on_this_node()}
    return actor.options(**options).remote(train_loop, size, config, scheduler, output, storage)
