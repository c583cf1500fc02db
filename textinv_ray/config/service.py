"""The section `service` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from textinv_ray.config.labels import LabelSelector
from textinv_ray.config.training import Strict
from textinv_ray.util.logs import LogFormat


class WavesConfig(Strict):
    """Words of the first concepts predict those of the others."""

    first: Annotated[int, Field(ge=10)] | None = None
    """This many concepts, drawn by `training.seed`, are learned plainly. A predictor is fitted on their words, stored
    in the output, and the other concepts start from what it predicts; rows with an `init_from` keep theirs. null: all
    are learned plainly."""


class ServiceConfig(Strict):
    """Workers, leases, and where results are stored."""

    output: str = Field("results", min_length=1)
    """Folder or fsspec URI (`s3://...`) for the results."""
    ray: Annotated[str, Field(min_length=1)] | None = None
    """Which Ray the job runs on. `local`: one of its own, which ends with the job; `auto`: the cluster that `ray start`
    started or joined on this machine; or a cluster's address. null: the one that RAY_ADDRESS names, as in a submitted
    job, else `local`."""
    wait_for_resources_min: Annotated[float, Field(gt=0)] | None = None
    """Minutes after which a job ends for which no worker could start; null: it waits."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of workers. `auto`: one per GPU of the cluster; without GPUs, by the number of CPUs."""
    workers_per_trainer: int = Field(1, ge=1)
    """Workers that restart together when one dies. Use the number of GPUs of a node; 1 for single-GPU spot nodes."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs that Ray reserves for each worker. `auto`: 1 when the cluster has GPUs and `model.device` isn't `cpu`."""
    label_selector: LabelSelector = Field(default_factory=dict)
    """Which nodes workers run on, by Ray's labels: `{ray.io/market-type: spot}`. Values may also be `!spot` or
    `in(A100,H100)`. Without labels: all nodes."""
    fallback_label_selectors: tuple[LabelSelector, ...] = ()
    """Selectors to try in turn where `label_selector` finds no room; then that one is tried again. `{}`: all nodes."""
    fallback_after_s: float = Field(300.0, gt=0)
    """Seconds that a trainer waits for room by one selector before it tries the next one. Longer than it takes to start
    a machine, where machines come when they are asked for."""
    prepare_cpus: float = Field(1.0, gt=0)
    """CPUs for downloading and decoding images ahead of the workers."""
    log_format: LogFormat = "text"
    """Form of `job.log`. `json`: each line is an object with `time`, `level`, `message` and, where there is one,
    `concept_id` and `worker`."""
    waves: WavesConfig = WavesConfig()
    """A first part of the concepts, and the rest from predicted words."""
    heartbeat_s: float = Field(3.0, gt=0)
    """Seconds between the heartbeats of a worker."""
    lease_timeout_s: float = Field(60.0, gt=0)
    """After this many seconds without a heartbeat, a worker's concepts are leased to other workers."""
    max_attempts: int = Field(3, ge=1)
    """A concept whose worker was lost this many times is quarantined: it is recorded as failed and not tried again in
    this job."""
    checkpoint_every_s: float = Field(30.0, gt=0)
    """Seconds between checkpoints of a concept: the most work that is lost with a worker."""
    release_after_s: float = Field(60.0, gt=0)
    """A worker exits, and frees its machine, after this many seconds in which no concept was left to lease."""

    @property
    def label_selectors(self) -> tuple[dict[str, str], ...]:
        """`label_selector` and its fallbacks."""
        return (self.label_selector, *self.fallback_label_selectors)

    @model_validator(mode="after")
    def _fallback_of_something(self) -> ServiceConfig:
        if self.fallback_label_selectors and not self.label_selector:
            raise ValueError("fallback_label_selectors need a label_selector that is tried first")
        return self

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> ServiceConfig:
        if self.lease_timeout_s < 2 * self.heartbeat_s:
            raise ValueError(
                "lease_timeout_s must be at least twice heartbeat_s, or live workers lose their concepts"
            )
        return self
