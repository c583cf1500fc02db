"""The scheduler actor, as the driver, the fleet and the workers call it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from textinv_ray.config.job import JobConfig
from textinv_ray.service.cluster.actors import Call, on_this_node
from textinv_ray.service.cluster.layout import WorkerLayout
from textinv_ray.service.scheduling.leases import Lease
from textinv_ray.service.scheduling.protocol import (
    Answer,
    Orders,
    PayloadLostError,
    Pending,
    PreparedConcept,
    RowSource,
    SchedulerGoneError,
    SchedulerStatus,
)
from textinv_ray.service.store.keys import Key

NAME = "textinv:scheduler"
"""Of the actor, in Ray's dashboard."""
_AHEAD_OF_SHAPES = 4
"""As many times more concepts wait where they are of several shapes, so that packs of one shape find enough."""
NEWS_S, MORE_S, NOTICE_S = 3.0, 10.0, 60.0
"""For how many seconds the actor holds a question that it has no answer to. Steps are no news, so the driver hears of
them in these intervals."""


class SchedulerClient:
    """A `SchedulerInterface` over the actor: each call waits for its answer. May be pickled.

    While the actor is being restarted, calls wait for it. They raise SchedulerGoneError when it won't come back.
    """

    def __init__(self, actor: Any) -> None:
        """`actor`: handle of a SchedulerActor."""
        self._actor = actor

    def _ask(self, method: str, *arguments: Any) -> Any:
        """A reference to the answer. In Ray's dashboard the task has the actor's name as well."""
        return getattr(self._actor, method).options(name=f"{NAME}.{method}").remote(*arguments)

    def take(self, worker: str, count: int, shape: str = "") -> Answer:
        """Leases up to `count` concepts of one shape."""
        answer: Answer = _wait(self._ask("take", worker, count, shape))
        return answer

    def fetch(self, lease: Lease) -> PreparedConcept:
        """The concept of a lease, from Ray's object store. Raises PayloadLostError."""
        try:
            prepared: PreparedConcept = ray.get(lease.payload)
        except ray.exceptions.ObjectLostError as error:
            raise PayloadLostError(str(error)) from error
        return prepared

    def beat(self, worker: str, steps: Mapping[str, int], computed: int, node: str = "") -> Orders:
        """A heartbeat."""
        orders: Orders = _wait(self._ask("beat", worker, steps, computed, node))
        return orders

    def more(self, answer: Answer) -> Pending[bool]:
        """See SchedulerInterface."""
        return Call(
            self._ask("wait_for_work", answer.waiting, answer.no_pending, MORE_S, answer.shape), _wait
        )

    def notice(self, node: str) -> Pending[bool]:
        """See SchedulerInterface."""
        return Call(self._ask("must_leave", node, NOTICE_S), _wait)

    def may_write(self, worker: str, concept_id: str) -> bool:
        """Whether a result or checkpoint of the worker is still wanted."""
        return bool(_wait(self._ask("may_write", worker, concept_id)))

    def saved(self, worker: str, concept_id: str, step: int) -> None:
        """A checkpoint at `step` is in the store."""
        _wait(self._ask("saved", worker, concept_id, step))

    def ack(self, worker: str, concept_id: str) -> None:
        """A result is in the store."""
        _wait(self._ask("ack", worker, concept_id))

    def fail(self, worker: str, concept_id: str, error: str) -> None:
        """The concept can't be learned, and another attempt would not help."""
        _wait(self._ask("fail", worker, concept_id, error))

    def give_back(self, worker: str, concept_id: str) -> None:
        """The worker doesn't work on the concept (any more)."""
        _wait(self._ask("give_back", worker, concept_id))

    def leave(self, worker: str, error: str = "", computed: int = 0) -> None:
        """The worker goes."""
        _wait(self._ask("leave", worker, error, computed))

    def halt(self, problem: str) -> None:
        """The job can't go on."""
        _wait(self._ask("halt", problem))

    def failed_to_start(self, error: str) -> None:
        """A worker could not start."""
        _wait(self._ask("failed_to_start", error))

    def is_over(self) -> bool:
        """Whether there is nothing more to do for any worker."""
        return bool(_wait(self._ask("is_over")))

    def wants_workers(self) -> bool:
        """Whether a concept waits for a worker, or more may come."""
        return bool(_wait(self._ask("wants_workers")))

    def status(self, cursor: int) -> SchedulerStatus:
        """Counts, and the events since `cursor` (0 at first)."""
        status: SchedulerStatus = _wait(self._ask("status", cursor))
        return status

    def news(self, cursor: int) -> Pending[SchedulerStatus]:
        """Answers with a status when there are events since `cursor`, when all is over, or after some time."""
        return Call(self._ask("status", cursor, NEWS_S), _wait)

    def stop(self) -> None:
        """No more leases; workers are told to write checkpoints and leave."""
        _wait(self._ask("stop"))

    def kill(self) -> None:
        """Ends the actor for good."""
        ray.kill(self._actor)


def _wait(answer: Any) -> Any:
    """What a call of the actor returned."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayActorError as error:
        raise SchedulerGoneError(str(error)) from error


def start_scheduler(
    rows: RowSource, keys: Mapping[str, Key], output: str, config: JobConfig, layout: WorkerLayout
) -> SchedulerClient:
    """Starts the SchedulerActor on this process's node. `rows`, `keys`, `output`: see `Scheduler`."""
    from textinv_ray.service.scheduling.actor import SchedulerActor

    actor: Any = ray.remote(SchedulerActor)
    # Each worker has up to two questions pending, and calls besides
    options = {"max_concurrency": 32 + 3 * layout.workers, **on_this_node(NAME)}
    return SchedulerClient(
        actor.options(**options).remote(
            rows,
            keys,
            output,
            ahead=max(16, 4 * layout.workers) * (_AHEAD_OF_SHAPES if config.data.fit == "bucket" else 1),
            workers=layout.workers,
            lease_timeout_s=config.service.lease_timeout_s,
            max_attempts=config.service.max_attempts,
            began=time.time(),
            log_format=config.service.log_format,
        )
    )
