"""The fleet: several small trainers, each a group of workers that live and die together.

Ray Train restarts a whole trainer when one of its workers dies. So there are many small ones: a death interrupts
only its own group, a trainer starts as soon as its node is there, and frees its GPUs when nothing is left for it.
A trainer that ends while there is work is started again: after two seconds when it ended in good order, and after
ever longer waits when it fails soon after its start.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import ray

from textinv_ray.config.job import JobConfig
from textinv_ray.config.labels import shown
from textinv_ray.service.cluster.actors import Call, on_this_node
from textinv_ray.service.cluster.layout import WorkerLayout
from textinv_ray.service.cluster.ray_internals import (
    PREEMPTION_WATCHER,
    WORKER_GROUP_START_TIMEOUT_S,
    WORKER_HEALTH_CHECK_TIMEOUT_S,
    found_no_room,
    free_reservations_of_the_dead,
    trainer_class,
)
from textinv_ray.util.logs import log_to_stderr
from textinv_ray.util.quiet import QUIET
from textinv_ray.util.submitted_job import runs_in_uploaded_folder

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 2.0  # before a trainer that ended is started again; doubled after each quick failure in a row
_LONGEST_WAIT_S = 120.0
_QUICK_S = 60.0  # a trainer that fails sooner had no chance to learn
_QUICK_FAILURES = 5  # in a row, after which a trainer is given up
_POLL_S = 2.0
_CHANGES_S = 60.0  # for which the actor holds the question whether a trainer has ended
_FREE_EVERY_S = 5.0  # between two searches for reservations that dead trainers left

NAME = "textinv:fleet"
"""Of the actor, in Ray's dashboard."""
TrainLoop = Callable[[dict[str, Any]], None]


class WorkSource(Protocol):
    """What a fleet asks the scheduler: a `SchedulerInterface`. Travels to the workers, so it must be picklable."""

    def is_over(self) -> bool:
        """Whether there is nothing more to do for any worker."""

    def wants_workers(self) -> bool:
        """Whether a concept waits for a worker, or more may come."""


class FleetState(NamedTuple):
    """Of all trainers."""

    trainers: int
    """That run, or will be started again."""
    errors: str
    """Why others were given up; empty if none was."""


class Fleet:
    """Runs the trainers. An actor, each of whose threads runs one long `fit`: starting one takes many seconds.

    It is a process of its own because a `fit` can't be ended from outside, only killed with its process: at the end
    of a job, some may still wait for a node that never comes.
    """

    def __init__(
        self,
        train_loop: TrainLoop,
        layout: WorkerLayout,
        config: JobConfig,
        scheduler: WorkSource,
        output: str,
        storage: str,
        folder: str | None,
    ) -> None:
        """Starts the trainers. Each worker runs `train_loop` with {"scheduler", "config", "output", "folder"}.

        `storage`: a local folder for what Ray Train insists on writing; results don't go there. `folder`: where the
        command was typed, and relative paths of models begin; None: Ray starts workers where they do.
        """
        log_to_stderr(config.service.log_format)
        self._train_loop = train_loop
        self._config = config
        self._layout = layout
        self._storage = storage
        self._scheduler = scheduler
        # Ray's dashboard shows this. Where MLflow is, and with which password, is no worker's business.
        self._setup = {
            "scheduler": scheduler,
            "config": {**config.to_dict(), "tracking": {}},
            "output": output,
            "folder": folder,
        }
        os.environ.update(_controller_environment(config))
        self._trainer_class = trainer_class()  # imports Ray Train, while the scheduler starts
        self._errors: list[str] = []
        self._trainers = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._free_reservations, name="free", daemon=True).start()
        group = config.service.workers_per_trainer
        for start in range(0, layout.workers, group):
            workers = min(group, layout.workers - start)
            self._trainers += 1
            threading.Thread(
                target=self._run_trainer, args=(workers,), name=f"trainer-{start}", daemon=True
            ).start()

    def state(self, trainers: int, wait_s: float) -> FleetState:
        """How many trainers there are still, and why others were given up.

        It waits until there are others than `trainers`, the number that the caller knows, for up to `wait_s` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._trainers != trainers, wait_s)
            return FleetState(self._trainers, "; ".join(self._errors))

    def _run_trainer(self, workers: int) -> None:
        try:
            self._keep_running(workers)
        finally:
            with self._changed:
                self._trainers -= 1
                self._changed.notify_all()

    def _free_reservations(self) -> None:
        """Frees what dead trainers reserved, for as long as the process lives."""
        while True:
            try:
                free_reservations_of_the_dead()
            except Exception:
                logger.exception("what dead trainers reserved can't be found out")
            time.sleep(_FREE_EVERY_S)

    def _keep_running(self, workers: int) -> None:
        """Runs one trainer of `workers` workers, again and again, until the job is over or it is given up."""
        wait, quick_failures = _FIRST_WAIT_S, 0
        selectors = self._config.service.label_selectors
        tried = 0
        while not self._scheduler.is_over():
            began = time.monotonic()
            try:
                self._trainer(workers, selectors[tried]).fit()
                wait, quick_failures, tried = _FIRST_WAIT_S, 0, 0
                # Its workers were released for want of work, or their node is about to go.
                while not self._scheduler.wants_workers():
                    if self._scheduler.is_over():
                        return
                    time.sleep(_POLL_S)
            except Exception as error:
                if len(selectors) > 1 and found_no_room(error):
                    before, tried = tried, (tried + 1) % len(selectors)
                    logger.info(
                        "no room for workers on %s; trying %s",
                        shown(selectors[before]),
                        shown(selectors[tried]),
                    )
                    continue
                logger.exception("a trainer failed")
                if time.monotonic() - began < _QUICK_S:
                    wait, quick_failures = 2 * wait, quick_failures + 1
                else:
                    wait, quick_failures = _FIRST_WAIT_S, 0
                if quick_failures >= _QUICK_FAILURES:
                    self._errors.append(str(error))
                    return
            time.sleep(min(wait, _LONGEST_WAIT_S))

    def _trainer(self, workers: int, selector: Mapping[str, str]) -> DataParallelTrainer:
        """`selector`: of the nodes that its workers run on, by Ray's labels."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        return self._trainer_class(
            self._train_loop,
            train_loop_config=self._setup,
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(self._layout.gpus),
                resources_per_worker=self._layout.resources,
                label_selector=dict(selector) or None,
            ),
            run_config=RunConfig(
                # A name of its own: Train would take up what a run of the same name left.
                name=f"textinv-workers-{uuid.uuid4().hex[:8]}",
                storage_path=self._storage,
                failure_config=FailureConfig(
                    max_failures=-1,
                    # Otherwise it would wait for room by the same selector forever
                    controller_failure_limit=0 if self._config.service.fallback_label_selectors else -1,
                ),
                worker_runtime_env={"env_vars": _worker_environment(self._config)},
            ),
        )


class FleetClient:
    """A fleet, as the driver calls it."""

    def __init__(self, actor: Any) -> None:
        """`actor`: handle of the Fleet actor."""
        self._actor = actor

    def changes(self, trainers: int) -> Call[FleetState]:
        """Answers when the number of trainers isn't `trainers` any more, or after some time. See `Fleet.state`."""
        state = self._actor.state.options(name=f"{NAME}.state")
        return Call(state.remote(trainers, _CHANGES_S))


def start_fleet(
    train_loop: TrainLoop,
    layout: WorkerLayout,
    config: JobConfig,
    scheduler: WorkSource,
    output: str,
    storage: str,
) -> FleetClient:
    """Starts the Fleet actor on this process's node. Its parameters: see `Fleet`."""
    actor: Any = ray.remote(Fleet)
    folder = None if runs_in_uploaded_folder() else os.getcwd()
    # No runtime environment of its own: Ray has a process ready for it.
    options = {"max_concurrency": 4, **on_this_node(NAME)}
    return FleetClient(
        actor.options(**options).remote(train_loop, layout, config, scheduler, output, storage, folder)
    )


def _controller_environment(config: JobConfig) -> dict[str, str]:
    """Variables of the fleet's process; Train passes them on to its controllers."""
    return {
        **QUIET,
        # The watcher would restart a whole group when a node is about to go; leases do what is needed.
        PREEMPTION_WATCHER: "0",
        # A worker that is silent for so long has lost its lease; its group is restarted.
        WORKER_HEALTH_CHECK_TIMEOUT_S: str(max(30.0, 2 * config.service.lease_timeout_s)),
        **(
            {WORKER_GROUP_START_TIMEOUT_S: str(config.service.fallback_after_s)}
            if config.service.fallback_label_selectors
            else {}
        ),
    }


def _worker_environment(config: JobConfig) -> dict[str, str]:
    """Variables of the worker processes: Train passes on only a few of the driver's."""
    threads = str(max(1, round(config.service.cpus_per_worker)))
    return {**QUIET, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
