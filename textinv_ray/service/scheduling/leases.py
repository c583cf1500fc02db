"""Who learns which concept: leases that expire without heartbeats, and a cap on attempts. No Ray in here.

A concept is waiting, running (leased to one worker), or finished (done or failed). A worker that dies, hangs or is cut
off stops sending heartbeats; its concepts wait again, and the next worker resumes them from their checkpoints. A
concept is learned at least once: a late result, from a worker that lost its lease, is accepted, because every worker
gets the same result.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ALONE = 2  # A concept lost this often is learned alone: if it kills its worker, no other concept loses an attempt.


@dataclass
class Unfinished:
    """One concept that isn't over."""

    concept_id: str
    payload: Any
    """What a worker needs to learn it (a Ray object reference)."""
    steps: int
    """Steps in all."""
    shape: str = ""
    """Of its training images: concepts of one shape are learned together."""
    step: int = 0
    """The last one reported by a heartbeat."""
    losses: int = 0
    """Workers lost with it since its last checkpoint that went further than any before."""
    lost_at: int = 0
    """Its step when it was last lost."""
    error: str = ""
    """Of the last loss."""
    first: bool = False
    """A worker has had it before: it is leased before those that nobody has begun."""


@dataclass(frozen=True)
class Lease:
    """The right and duty to learn a concept."""

    concept_id: str
    payload: Any
    attempt: int
    """1 for the first."""


@dataclass(frozen=True)
class Event:
    """What the driver is told of a concept: kind "saved" (a checkpoint), "done" or "failed"."""

    kind: str
    concept_id: str
    error: str = ""
    quarantined: bool = False
    """Of a failed one: whether it was put aside because workers were lost with it."""


@dataclass
class _Worker:
    holds: dict[str, Unfinished] = field(default_factory=dict)
    claims: set[str] = field(default_factory=set)
    """Concepts that it learns by a lease of this table's predecessor, and that weren't offered here yet."""
    heard: float = 0.0
    steps: int = 0


class Leases:
    """The table. Not thread-safe: the scheduler locks."""

    def __init__(
        self, timeout_s: float, max_attempts: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._clock = clock
        self._entries: dict[str, Unfinished] = {}
        self._waiting: dict[str, None] = {}
        self._workers: dict[str, _Worker] = {}
        self._steps_over = 0  # of concepts that are over
        self._steps_of_gone = 0  # computed by workers that are gone
        self.begun = False
        """Whether a worker was ever heard of: at least one could start."""
        self.done = 0
        self.failed = 0
        self.skipped = 0
        self.steps_redone = 0
        """Steps that were heard of and then taken again, from a checkpoint before them."""
        self.losses = 0
        """Leases that ended with the loss of their worker."""
        self.closed = False
        self.known: set[str] = set()
        """Concepts that were offered or ended here."""
        self.events: list[Event] = []

    @property
    def waiting(self) -> int:
        """Concepts nobody learns at the moment."""
        return len(self._waiting)

    def waiting_of(self, shape: str) -> int:
        """Those of them that are of this shape; empty: of any."""
        if not shape:
            return self.waiting
        return sum(self._entries[concept_id].shape == shape for concept_id in self._waiting)

    @property
    def running(self) -> int:
        """Concepts on lease."""
        return sum(len(worker.holds) for worker in self._workers.values())

    @property
    def workers(self) -> int:
        """Workers that were heard of and haven't gone."""
        return len(self._workers)

    @property
    def over(self) -> bool:
        """Nothing is left to do, and nothing will come."""
        return self.closed and not self._entries

    @property
    def steps_computed(self) -> int:
        """Steps by all workers in this run, those that had to be redone included."""
        return self._steps_of_gone + sum(worker.steps for worker in self._workers.values())

    @property
    def steps_reached(self) -> int:
        """How far all concepts have come, those of earlier runs' checkpoints included: for the time left."""
        return self._steps_over + sum(entry.step for entry in self._entries.values())

    @property
    def no_pending(self) -> bool:
        """All that is left is on lease: a worker without any has nothing to wait for but another's end."""
        return self.closed and not self._waiting

    def offer(self, concept_id: str, payload: Any, steps: int, shape: str = "") -> None:
        """A concept to learn. shape: of its training images."""
        if concept_id in self.known:
            return
        self.known.add(concept_id)
        entry = self._entries[concept_id] = Unfinished(concept_id, payload, steps, shape)
        for worker in self._workers.values():
            if concept_id in worker.claims:
                worker.claims.discard(concept_id)
                worker.holds[concept_id] = entry
                return
        self._waiting[concept_id] = None

    def skip(self, concept_id: str, steps: int) -> None:
        """A concept that is done already, as was found when it was prepared."""
        if concept_id not in self.known:
            self.known.add(concept_id)
            self.skipped += 1
            self._steps_over += steps

    def close(self) -> None:
        """No more will be offered."""
        self.closed = True
        for worker in self._workers.values():
            worker.claims.clear()

    def take(self, worker: str, count: int, expected_workers: int = 1, shape: str = "") -> list[Lease]:
        """Up to `count` concepts of one shape for a worker; none when all are out (then it should ask again) or `over`.

        They are of `shape`, or if that is empty of the shape that most of those have that come first.

        Concepts that a worker has had before come first, then those with most steps left: a long one must not begin
        last. Once all concepts are known, no worker gets more than its share of what is left: else the first worker
        might take all of a small job. `expected_workers`: how many there will be, those that are still starting
        included.
        """
        self.expire()
        me = self._hear(worker)
        if self.closed:
            share = -(-len(self._entries) // max(expected_workers, len(self._workers)))
            count = min(count, share - len(me.holds))
        if any(entry.losses >= _ALONE for entry in me.holds.values()):
            return []
        leases: list[Lease] = []
        waiting = [self._entries[concept_id] for concept_id in self._waiting] if count > 0 else []
        waiting = [entry for entry in waiting if not (me.holds and entry.losses >= _ALONE)]
        shape = shape or _commonest_shape(waiting)
        waiting = [entry for entry in waiting if entry.shape == shape]
        for entry in sorted(waiting, key=lambda entry: (not entry.first, entry.step - entry.steps)):
            if len(leases) >= count:
                break
            alone = entry.losses >= _ALONE
            if alone and leases:
                continue
            del self._waiting[entry.concept_id]
            me.holds[entry.concept_id] = entry
            leases.append(Lease(entry.concept_id, entry.payload, entry.losses + 1))
            if alone:
                break
        return leases

    def beat(self, worker: str, steps: Mapping[str, int], computed: int) -> list[str]:
        """A heartbeat: the worker's concepts with their steps. Returns those it lost and must drop.

        `computed`: steps this worker has computed in all.
        """
        self.expire()
        me = self._hear(worker)
        me.steps = max(me.steps, computed)
        for concept_id, step in steps.items():
            self._adopt(me, concept_id)
            if concept_id in me.holds:
                self.steps_redone += max(0, me.holds[concept_id].step - step)
                me.holds[concept_id].step = step
        return [
            concept_id for concept_id in steps if concept_id not in me.holds and concept_id not in me.claims
        ]

    def _adopt(self, me: _Worker, concept_id: str) -> None:
        """A concept that a worker learns without a lease is its own while nobody else has it.

        It was silent for too long and came back, or this table is new (its predecessor died).
        """
        if concept_id in self._waiting and self._entries[concept_id].losses < _ALONE:
            del self._waiting[concept_id]
            me.holds[concept_id] = self._entries[concept_id]
        elif concept_id not in self.known and not self.closed:
            me.claims.add(concept_id)

    def may_write(self, worker: str, concept_id: str) -> bool:
        """Whether a concept that the worker learns is neither over nor another's by now."""
        if concept_id not in self._entries:
            return concept_id not in self.known  # learned by a lease of this table's predecessor
        return not any(concept_id in me.holds for name, me in self._workers.items() if name != worker)

    def saved(self, worker: str, concept_id: str, step: int) -> None:
        """A checkpoint at `step` is in the store: the concept got further, whatever happened before."""
        entry = self._entries.get(concept_id)
        if entry is not None:
            if step > entry.lost_at:
                entry.losses = 0
            self.events.append(Event("saved", concept_id))

    def ack(self, worker: str, concept_id: str) -> None:
        """The concept's result is in the store. Good from anyone, at any time, any number of times."""
        self._hear(worker).claims.discard(concept_id)
        self.conclude(concept_id)

    def conclude(self, concept_id: str) -> None:
        """The concept is done, whoever learned it."""
        if self._forget(concept_id):
            self.done += 1
            self.events.append(Event("done", concept_id))

    def fail(self, worker: str, concept_id: str, error: str) -> bool:
        """The concept can't be learned. False when the worker has lost it: then it is not its to judge."""
        me = self._hear(worker)
        me.claims.discard(concept_id)
        if concept_id not in me.holds:
            return False
        self.give_up(concept_id, error)
        return True

    def give_up(self, concept_id: str, error: str, *, quarantined: bool = False) -> None:
        """The concept failed, whoever held it. `quarantined`: because workers were lost with it."""
        if self._forget(concept_id):
            self.failed += 1
            self.events.append(Event("failed", concept_id, error, quarantined))

    def give_back(self, worker: str, concept_id: str) -> None:
        """The worker doesn't work on a concept (any more); if it is still on lease to it, it waits again."""
        me = self._hear(worker)
        me.claims.discard(concept_id)
        entry = me.holds.pop(concept_id, None)
        if entry is not None:
            self._wait_again(entry)

    def leave(self, worker: str, error: str = "", computed: int = 0) -> None:
        """A worker goes, giving back what it holds. With an error it was lost; else it left in good order.

        `computed`: as for `beat`; steps since the last heartbeat count as well.
        """
        gone = self._workers.pop(worker, None)
        if gone is None:
            return
        self._steps_of_gone += max(gone.steps, computed)
        for entry in gone.holds.values():
            if error:
                self._count_loss(entry, error)
            if entry.losses >= self._max_attempts:
                self.give_up(entry.concept_id, entry.error, quarantined=True)
            else:
                self._wait_again(entry)

    def expire(self) -> None:
        """Takes the leases of workers that weren't heard of for too long."""
        late = self._clock() - self._timeout_s
        for name in [name for name, worker in self._workers.items() if worker.heard < late]:
            self.leave(name, f"its worker gave no sign of life for {self._timeout_s:g} s")

    def _wait_again(self, entry: Unfinished) -> None:
        entry.first = True
        self._waiting[entry.concept_id] = None

    def _count_loss(self, entry: Unfinished, error: str) -> None:
        self.losses += 1
        entry.losses += 1
        entry.lost_at = max(entry.lost_at, entry.step)
        entry.error = f"{error} ({entry.losses} of {self._max_attempts} attempts)"

    def _hear(self, worker: str) -> _Worker:
        self.begun = True
        me = self._workers.setdefault(worker, _Worker())
        me.heard = self._clock()
        return me

    def _forget(self, concept_id: str) -> bool:
        """Whether the concept was not over yet. It may be one that this table hasn't been offered so far."""
        entry = self._entries.pop(concept_id, None)
        if entry is None and concept_id in self.known:
            return False
        self.known.add(concept_id)
        self._steps_over += entry.steps if entry else 0
        for worker in self._workers.values():
            worker.holds.pop(concept_id, None)
        self._waiting.pop(concept_id, None)
        return True


def _commonest_shape(waiting: Sequence[Unfinished]) -> str:
    """The shape to begin with: of those that a worker has had before, if there are any; empty without concepts."""
    first = [entry for entry in waiting if entry.first] or waiting
    counts = Counter(entry.shape for entry in first)
    return max(counts, key=lambda shape: counts[shape]) if counts else ""
