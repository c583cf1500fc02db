"""What the scheduler and its callers exchange, and which calls there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar

from textinv_ray.service.scheduling.leases import Event, Lease


class PreparedRow(TypedDict):
    """What the preparation makes of a manifest's row."""

    concept_id: str
    steps: int
    """That the concept takes at most."""
    shape: str
    """Height and width of its training images, as `shape_name` has them; empty without a concept."""
    concept: bytes
    """`Concept.to_bytes()`; empty when there is an error, or when it is done."""
    error: str
    """Why the concept can't be learned, such as an image that can't be read; empty if it can."""
    done: bool
    """Its result is in the store already."""


def shape_name(shape: tuple[int, int]) -> str:
    """Height and width in pixels, such as "832x1216": concepts of one shape share a pack."""
    return f"{shape[0]}x{shape[1]}"


class RowSource(Protocol):
    """Where the scheduler reads prepared concepts from: a `preparation.Preparation`."""

    def iter_rows(self, wanted: Collection[str]) -> Iterable[PreparedRow]:
        """Prepared rows of these concepts. Raises UserError when it can't give them all, now or later."""


@dataclass(frozen=True)
class PreparedConcept:
    """A concept, ready to be learned, as a lease carries it."""

    row: bytes
    """`Concept.to_bytes()`."""
    images_mtime_digest: str
    """Goes into the concept's result: see `plan.images_mtime_digest`."""


@dataclass(frozen=True)
class Answer:
    """To a worker that asked for work."""

    leases: tuple[Lease, ...]
    over: bool
    """There is nothing more for this worker, ever. Without leases and not over: ask again later."""
    no_pending: bool = False
    """No concept waits and no more will come: this worker gets work only if another one loses a lease."""
    waiting: int = 0
    """Concepts that wait and that this worker wasn't given, such as those that are learned alone: of the shape that it
    asked for, if it did."""
    shape: str = ""
    """The shape that it asked for; empty: any."""


@dataclass(frozen=True)
class Orders:
    """To a worker that sent a heartbeat."""

    lost: tuple[str, ...]
    """Concepts that are no longer the worker's: it must drop them."""
    stop: bool
    """The worker must write checkpoints and leave."""


@dataclass(frozen=True)
class SchedulerStatus:
    """Where the job stands."""

    begun: bool
    """Whether a worker has started."""
    done: int
    failed: int
    skipped: int
    """Concepts that were done before, though their images had been touched or moved."""
    running: int
    over: bool
    """Every concept is done or failed, and all events about it are published."""
    steps_computed: int
    """Steps by all workers, those that were taken again included."""
    steps_reached: int
    """The sum of all concepts' steps, those of earlier runs included."""
    steps_redone: int
    """Steps that were taken again, from a checkpoint before them."""
    events: tuple[Event, ...]
    cursor: int
    """To be passed to the next `status` call."""
    problem: str
    """Why the job can't go on; empty while it can."""


Found = TypeVar("Found", covariant=True)


class Pending(Protocol[Found]):
    """A question that is answered when there is something to say: asked once, not again and again."""

    def answer(self, timeout_s: float) -> Found | None:
        """The answer, if it comes within `timeout_s` seconds. None: not yet. Raises SchedulerGoneError."""


@dataclass(frozen=True)
class Asked:
    """A pending question to a scheduler within this process."""

    ask: Callable[[float], bool]

    def answer(self, timeout_s: float) -> bool | None:
        """True; None while there is nothing to say."""
        return self.ask(timeout_s) or None


class SchedulerGoneError(Exception):
    """The scheduler's process is gone for good, and with it the job."""


class PayloadLostError(Exception):
    """A lease's concept can't be fetched: the scheduler process that prepared it has died."""


class SchedulerInterface(Protocol):
    """The scheduler's calls. `Scheduler` answers them in its own process, `SchedulerClient` from any other."""

    # For workers

    def take(self, worker: str, count: int, shape: str = "") -> Answer:
        """Leases up to `count` concepts of one shape: of `shape`, unless that is empty."""

    def fetch(self, lease: Lease) -> PreparedConcept:
        """The concept of a lease. Raises PayloadLostError."""

    def beat(self, worker: str, steps: Mapping[str, int], computed: int, node: str = "") -> Orders:
        """A heartbeat. `steps`: concept_id -> step, of what the worker holds. `computed`: steps it took in all.

        `node`: id of the worker's node.
        """

    def more(self, answer: Answer) -> Pending[bool]:
        """Answers when asking for leases again may bring what `answer` didn't, or after some time."""

    def notice(self, node: str) -> Pending[bool]:
        """Answers True when workers on this node must write checkpoints and leave; False after some time."""

    def may_write(self, worker: str, concept_id: str) -> bool:
        """Whether a result or checkpoint of the worker is still wanted. To be asked before every write."""

    def saved(self, worker: str, concept_id: str, step: int) -> None:
        """A checkpoint at `step` is in the store."""

    def ack(self, worker: str, concept_id: str) -> None:
        """A result is in the store."""

    def fail(self, worker: str, concept_id: str, error: str) -> None:
        """The concept can't be learned, and another attempt would not help."""

    def give_back(self, worker: str, concept_id: str) -> None:
        """The worker doesn't work on the concept (any more)."""

    def leave(self, worker: str, error: str = "", computed: int = 0) -> None:
        """The worker goes. `error`: what it died of; empty when it left in good order.

        `computed`: steps that it has taken in all, counted per concept.
        """

    def halt(self, problem: str) -> None:
        """The job can't go on: the store refuses."""

    def failed_to_start(self, error: str) -> None:
        """A worker could not start. When no worker does, again and again, the job can't go on."""

    # For the fleet

    def is_over(self) -> bool:
        """Whether there is nothing more to do for any worker."""

    def wants_workers(self) -> bool:
        """Whether a concept waits for a worker, or more may come."""

    # For the driver

    def status(self, cursor: int) -> SchedulerStatus:
        """Counts, and the events since `cursor` (0 at first)."""

    def stop(self) -> None:
        """No more leases; workers are told to write checkpoints and leave."""
