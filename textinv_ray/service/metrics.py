"""Every metric of a job, named once: what workers, scheduler, store and MLflow mirror report to Ray.

Each node of a Ray cluster offers the metrics of its processes to Prometheus, under these names with `ray_` before
them. A process reports nothing before it has called `report`, so commands without Ray pay nothing. The dashboard in
`configs/grafana/` shows them, and docs/operations.md has the table that is made of `METRICS`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

PREFIX = "ray_"
"""What Ray puts before each name."""
COMMON_TAGS = ("job_name", "worker")
"""Tags of every metric. `job_name` is the job's output without credentials, since Prometheus itself takes `job`.
`worker` is empty for what the driver and the scheduler report."""
_REPEAT_S = 1.0  # Ray forgets a gauge that isn't set again within two of its export intervals, of 10 s each
_SHORT = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_LONG = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Metric:
    """One metric. Recording it does nothing in a process that has not called `report`."""

    name: str
    unit: str
    description: str
    tags: tuple[str, ...] = ()
    """Beside COMMON_TAGS."""

    kind: ClassVar[str]

    @property
    def exported(self) -> str:
        """Its name in Prometheus. Of a histogram, `_bucket`, `_sum` and `_count` follow."""
        return PREFIX + self.name


@dataclass(frozen=True)
class Counter(Metric):
    """A number that grows; its rate is of interest. The name ends in `_total`."""

    kind = "counter"

    def add(self, count: float = 1, **tags: str) -> None:
        """Adds `count`, if it is above 0."""
        if count > 0:
            _record(self, count, tags)


@dataclass(frozen=True)
class Gauge(Metric):
    """A number that rises and falls. The value that was set last stays until the process ends."""

    kind = "gauge"

    def set(self, value: float, **tags: str) -> None:
        """Sets the value for these tags."""
        _record(self, value, tags)


@dataclass(frozen=True)
class Histogram(Metric):
    """How long something takes, in seconds."""

    boundaries: tuple[float, ...] = _SHORT

    kind = "histogram"

    def observe(self, seconds: float, **tags: str) -> None:
        """Notes that it took so long once."""
        _record(self, seconds, tags)

    @contextmanager
    def timed(self, **tags: str) -> Iterator[None]:
        """Notes how long the block takes, also when it raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.observe(time.monotonic() - start, **tags)


CONCEPTS = Gauge(
    "textinv_concepts",
    "concepts",
    "Concepts that the job was to learn, by state: waiting, running, done, failed",
    ("state",),
)
QUEUE = Gauge("textinv_queue_depth", "concepts", "Concepts that are prepared and that no worker has yet")
WORKERS = Gauge("textinv_workers", "workers", "Workers that the scheduler hears of")
STEPS = Counter("textinv_steps_total", "steps", "Optimizer steps, counted for each concept")
SAMPLES = Counter("textinv_samples_total", "samples", "Training samples: steps times batch size")
PACK_SIZE = Gauge("textinv_pack_size", "concepts", "Slots of a worker's pack")
PACK_CONCEPTS = Gauge("textinv_pack_concepts", "concepts", "Concepts in the slots of a worker's pack")
STEP_SECONDS = Histogram("textinv_step_seconds", "s", "One step of all concepts in a pack")
LOOK_SECONDS = Histogram(
    "textinv_look_seconds", "s", "One evaluation of words for `stopping.rule: clip`", boundaries=_LONG
)
REVIEW_SECONDS = Histogram(
    "textinv_review_seconds",
    "s",
    "Samples and scores of concepts that are reviewed together",
    boundaries=_LONG,
)
LEASE_LOSSES = Counter(
    "textinv_lease_losses_total", "leases", "Leases that ended with the loss of their worker"
)
STEPS_REDONE = Counter(
    "textinv_steps_redone_total", "steps", "Steps taken again, from a checkpoint before them"
)
RETRIES = Counter(
    "textinv_retries_total",
    "calls",
    "Calls that were repeated after an error: target store or tracking",
    ("target",),
)
MEMORY_SPLITS = Counter(
    "textinv_memory_splits_total", "splits", "Packs and reviews that ran out of memory and were split up"
)
STORE_SECONDS = Histogram(
    "textinv_store_seconds", "s", "One call of the store, retries included", ("operation",)
)
WRITE_QUEUE = Gauge("textinv_write_queue_depth", "writes", "Writes to the store that a worker has yet to do")
TRACKING_SECONDS = Histogram(
    "textinv_tracking_seconds", "s", "Bringing one concept's run in MLflow up to date"
)
TRACKING_QUEUE = Gauge(
    "textinv_tracking_queue_depth", "concepts", "Concepts with news that MLflow doesn't have yet"
)

_reporter: _Reporter | None = None
METRICS: tuple[Metric, ...] = (
    *(CONCEPTS, QUEUE, WORKERS, STEPS, SAMPLES, PACK_SIZE, PACK_CONCEPTS),
    *(STEP_SECONDS, LOOK_SECONDS, REVIEW_SECONDS, LEASE_LOSSES, STEPS_REDONE, RETRIES, MEMORY_SPLITS),
    *(STORE_SECONDS, WRITE_QUEUE, TRACKING_SECONDS, TRACKING_QUEUE),
)
"""All of them, in the order of the documentation."""


def report(job_name: str, worker: str = "") -> None:
    """From now on, what this process records goes to the Ray that it is connected to.

    `job_name`: the output without credentials. `worker`: the name of the worker that this process is.
    """
    global _reporter
    stop()
    _reporter = _Reporter(job_name, worker)


def stop() -> None:
    """Nothing is recorded any more, as before `report`."""
    global _reporter
    if _reporter:
        _reporter.stopped.set()
    _reporter = None


def _record(metric: Metric, value: float, tags: Mapping[str, str]) -> None:
    reporter = _reporter
    if reporter:
        reporter.record(metric, value, tags)


class _Reporter:
    """The objects of Ray behind the metrics, made when they are first recorded. Safe to use from many threads."""

    def __init__(self, job_name: str, worker: str) -> None:
        self._common = dict(zip(COMMON_TAGS, (job_name, worker), strict=True))
        self._made: dict[Metric, Any] = {}
        self._gauges: dict[tuple[Gauge, frozenset[tuple[str, str]]], float] = {}
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        threading.Thread(target=self._repeat, name="metrics", daemon=True).start()

    def record(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        """Hands a value to Ray, and a gauge's again and again."""
        with self._lock:
            if isinstance(metric, Gauge):
                self._gauges[metric, frozenset(tags.items())] = value
            self._hand_on(metric, value, tags)

    def _repeat(self) -> None:
        while not self.stopped.wait(_REPEAT_S):
            with self._lock:
                for (metric, tags), value in self._gauges.items():
                    self._hand_on(metric, value, dict(tags))

    def _hand_on(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        if metric not in self._made:
            self._made[metric] = _made(metric).set_default_tags(self._common)
        made = self._made[metric]
        action = {"counter": "inc", "gauge": "set", "histogram": "observe"}[metric.kind]
        getattr(made, action)(value, dict(tags))


def _made(metric: Metric) -> Any:
    """The metric as Ray has it."""
    from ray.util import metrics as of_ray

    about = (metric.name, metric.description)
    tags = (*COMMON_TAGS, *metric.tags)
    if isinstance(metric, Histogram):
        return of_ray.Histogram(*about, list(metric.boundaries), tags)
    return (of_ray.Counter if isinstance(metric, Counter) else of_ray.Gauge)(*about, tags)
