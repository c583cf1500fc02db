"""The workers: several small trainers, each a group of workers that live and die together.

One trainer of many workers would restart them all whenever one dies. Small ones are a blast radius each,
start as soon as their node is there, and free their GPUs when nothing is left for them.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from textinv_ray.config import JobConfig
from textinv_ray.errors import UserError
from textinv_ray.service.plan import Key

logger = logging.getLogger(__name__)

_PREPARE_CPUS = (
    0.1  # What a task that prepares images reserves, so that it fits beside workers that take all CPUs.
)
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class _NoProcessGroup(TorchConfig):
    """Workers don't talk to each other, so nothing of torch.distributed is set up."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


@dataclass(frozen=True)
class Size:
    """How many workers, and what each reserves."""

    workers: int
    cpus: float
    gpus: float
    prepare_cpus: float
    """Reserved by a task that prepares images."""

    @classmethod
    def of(cls, config: JobConfig, resources: dict[str, float], concepts: int) -> Size:
        """By the configuration, what it leaves open by the cluster's resources; never more than concepts.

        Raises UserError for a configuration that needs a GPU where there is none.
        """
        service = config.service
        gpus = service.gpus_per_worker
        if gpus == "auto":
            gpus = 1.0 if resources.get("GPU", 0) >= 1 and config.model.device != "cpu" else 0.0
        if config.model.device == "cuda" and gpus == 0:
            raise UserError(
                "model.device is cuda, but the cluster has no GPU (or service.gpus_per_worker is 0)"
            )
        by_gpu = resources.get("GPU", 0) / gpus if gpus else math.inf
        fitting = max(1, math.floor(min(by_gpu, resources.get("CPU", 1) / service.cpus_per_worker)))
        workers = fitting if service.workers == "auto" else service.workers
        cpus = service.cpus_per_worker
        return cls(min(workers, concepts), max(cpus - _PREPARE_CPUS, cpus / 2), gpus, _PREPARE_CPUS)


class Fleet:
    """Trainers in threads of the driver. Each runs one long `fit`: starting one takes many seconds."""

    def __init__(self, size: Size, config: JobConfig, feed: Any, output: str, storage: str) -> None:
        """`storage`: a local folder for what Ray Train insists on writing; results don't go there."""
        self._errors: list[Exception] = []
        setup = {"feed": feed, "config": config.to_dict(), "output": output}
        group = config.service.workers_per_trainer
        groups = [min(group, size.workers - start) for start in range(0, size.workers, group)]
        self._threads = []
        for index, workers in enumerate(groups):
            trainer = TorchTrainer(
                _learn,
                train_loop_config=setup,
                torch_config=_NoProcessGroup(),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=size.gpus > 0,
                    resources_per_worker={"CPU": size.cpus, **({"GPU": size.gpus} if size.gpus else {})},
                ),
                run_config=RunConfig(  # type: ignore[call-arg]  # of Train v2
                    name=f"workers-{index}",
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=-1),
                    worker_runtime_env={"env_vars": _environment(config)},
                ),
            )
            thread = threading.Thread(target=self._fit, args=(trainer,), name=f"trainer-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def alive(self) -> bool:
        """Whether any trainer is still there."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def error(self) -> str:
        """Why trainers ended, if not because their work was done."""
        return "; ".join(str(error) for error in self._errors)

    def join(self, timeout_s: float) -> None:
        """Waits for workers to leave."""
        share = timeout_s / len(self._threads)
        for thread in self._threads:
            thread.join(share)

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except SystemExit:  # Ray was shut down: all is over
            return
        except Exception as error:
            logger.exception("a trainer ended")
            self._errors.append(error)


def _learn(setup: dict[str, Any]) -> None:
    """The Ray Train loop. Imports late: Train's controllers load this function too, but no models."""
    from textinv_ray.service import worker

    worker.learn(setup)


def _environment(config: JobConfig) -> dict[str, str]:
    """Variables of the worker processes: Train passes on only a few of the driver's."""
    threads = str(max(1, round(config.service.cpus_per_worker)))
    return {**_QUIET, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def make_feed(rows: Any, keys: Mapping[str, Key], output: str, config: JobConfig, size: Size) -> Any:
    """The Feed actor, on the driver's node: one without CPUs might be placed on, and die with, any other."""
    from textinv_ray.service.feed import Feed

    here = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    actor: Any = ray.remote(Feed)
    return actor.options(num_cpus=0, max_concurrency=32, scheduling_strategy=strategy).remote(
        rows,
        keys,
        output,
        ahead=max(16, 4 * size.workers),
        lease_timeout_s=config.service.lease_timeout_s,
        max_attempts=config.service.max_attempts,
    )
