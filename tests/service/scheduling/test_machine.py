"""The scheduler under everything that may happen to it and to its workers, in any order.

Workers take, learn, save, finish, fail, leave, die without a word, hang and come back. What they say may arrive late,
twice, or, when they died, not at all. The scheduler dies, and another one takes its place with nothing but the store.
The real Scheduler with a clock of the test's, on a store in memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support import examples
from tests.support.clock import Clock
from tests.support.rows import Rows, row
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.store import Store

STEPS = 10
TIMEOUT_S = 60.0
MAX_ATTEMPTS = 3
CONCEPTS = [f"c{index}" for index in range(3)]
BROKEN = "broken"
"""Its images can't be read."""
KEYS = {name: Key(f"row of {name}", "stamp") for name in [*CONCEPTS, BROKEN]}
WHICH = st.integers(0, 11)
"""Which of those there are, modulo their number."""

Held = dict[str, int]
"""concept_id -> step"""


@dataclass(eq=False)
class Worker:
    """As much of a worker as the scheduler notices."""

    name: str
    hangs: bool = False
    held: Held = field(default_factory=dict)
    computed: int = 0


class Jobs(RuleBasedStateMachine):
    """A job from its start on."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(f"memory://{uuid.uuid4().hex}")
        self.clock = Clock()
        self.names: list[str] = []
        self.workers = [self.new_worker() for _ in range(3)]
        self.late: list[Callable[[], object]] = []
        """Messages under way."""
        self.recovered: set[str] = set()
        """Concepts that were done when the present scheduler began to read."""
        self.cursor = 0
        self.ends: dict[str, str] = {}
        """What the driver heard: concept_id -> "done" or "failed"."""
        self.restarts = 0
        self.begin_scheduler(was_restarted=False)
        self.reads_the_manifest()

    def new_worker(self) -> Worker:
        self.names.append(f"worker-{len(self.names)}")
        return Worker(self.names[-1])

    def begin_scheduler(self, was_restarted: bool) -> None:
        rows = [row(name, steps=STEPS) for name in CONCEPTS]
        rows.append(row(BROKEN, steps=STEPS, concept=b"", error="image x.png: is truncated"))
        self.has_read = False
        self.scheduler = Scheduler(
            Rows(rows),
            KEYS,
            self.store.uri,
            ahead=100,
            lease_timeout_s=TIMEOUT_S,
            max_attempts=MAX_ATTEMPTS,
            was_restarted=was_restarted,
            clock=self.clock,
        )

    def awake(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.hangs]

    def busy(self) -> list[tuple[Worker, str]]:
        """Workers that don't hang, with each of their concepts."""
        return [(worker, name) for worker in self.awake() for name in sorted(worker.held)]

    def a_busy(self, which: int) -> tuple[Worker, str]:
        return self.busy()[which % len(self.busy())]

    def an_awake(self, which: int) -> Worker:
        return self.awake()[which % len(self.awake())]

    def send(self, message: Callable[[], object], copies: int, late: bool) -> None:
        """A message that changes nothing for its sender: arrives at once, later, or more than once."""
        for copy in range(copies):
            if late or copy:
                self.late.append(message)
            else:
                message()

    # The scheduler's own work

    @precondition(lambda self: not self.has_read)
    @rule()
    def reads_the_manifest(self) -> None:
        self.recovered = {result.concept_id for result in self.store.results()}
        self.scheduler.read()
        self.has_read = True

    @rule()
    def publishes(self) -> None:
        self.scheduler.publish()

    @precondition(lambda self: self.has_read and self.restarts < 2)
    @rule()
    def dies_and_is_replaced(self) -> None:
        self.restarts += 1
        self.begin_scheduler(was_restarted=True)

    @rule(seconds=st.sampled_from([TIMEOUT_S + 1, TIMEOUT_S / 3]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.late)
    @rule(which=WHICH)
    def a_late_message_arrives(self, which: int) -> None:
        self.late.pop(which % len(self.late))()

    @rule()
    def the_driver_asks(self) -> None:
        status = self.scheduler.status(self.cursor)
        self.cursor = status.cursor
        for event in status.events:
            if event.kind != "saved":
                self.ends[event.concept_id] = event.kind

    # Workers

    def take(self, worker: Worker, count: int) -> None:
        for lease in self.scheduler.take(worker.name, count).leases:
            assert 1 <= lease.attempt <= MAX_ATTEMPTS
            assert lease.concept_id not in self.recovered, "it is learned twice"
            others = [name for name in self.names if name != worker.name]
            assert not any(self.scheduler.may_write(other, lease.concept_id) for other in others)
            if lease.attempt > 1 and self.store.result(lease.concept_id):
                self.scheduler.ack(worker.name, lease.concept_id)
            else:
                saved = self.store.read_concept(lease.concept_id, "checkpoint.safetensors")
                worker.held[lease.concept_id] = int(saved or b"0")

    @precondition(lambda self: self.awake())
    @rule(
        which=WHICH,
        count=st.integers(0, 3),
        steps=st.integers(0, STEPS),
        late=st.sampled_from([False, False, True]),
        copies=st.integers(1, 2),
    )
    def takes_learns_and_beats(self, which: int, count: int, steps: int, late: bool, copies: int) -> None:
        worker = self.an_awake(which)
        if count and self.has_read:
            self.take(worker, count)
        for name, step in worker.held.items():
            worker.held[name] = min(STEPS, step + steps)
        worker.computed += steps * len(worker.held)
        reported, computed = dict(worker.held), worker.computed

        def beat() -> None:
            orders = self.scheduler.beat(worker.name, reported, computed)
            if worker in self.workers:
                for name in orders.lost:
                    if worker.held.pop(name, None) is not None:
                        self.scheduler.give_back(worker.name, name)

        self.send(beat, copies, late)
        if not late:
            assert all(self.scheduler.may_write(worker.name, name) for name in worker.held)

    @precondition(lambda self: self.busy())
    @rule(which=WHICH, late=st.booleans(), copies=st.integers(1, 2))
    def saves(self, which: int, late: bool, copies: int) -> None:
        worker, name = self.a_busy(which)
        if self.scheduler.may_write(worker.name, name):
            step = worker.held[name]
            self.store.checkpoint(name, str(step).encode(), b"")
            self.send(lambda: self.scheduler.saved(worker.name, name, step), copies, late)

    @precondition(lambda self: self.busy())
    @rule(which=WHICH, late=st.booleans(), copies=st.integers(0, 2))
    def finishes(self, which: int, late: bool, copies: int) -> None:
        """With no copy of the message, the worker dies between the result and its word of it."""
        worker, name = self.a_busy(which)
        if self.scheduler.may_write(worker.name, name):
            examples.finish(self.store, name, **KEYS[name]._asdict())
            self.send(lambda: self.scheduler.ack(worker.name, name), copies, late)
        del worker.held[name]
        if not copies:
            self.replace(worker)

    @precondition(lambda self: self.busy())
    @rule(which=WHICH, late=st.booleans(), copies=st.integers(1, 2))
    def fails(self, which: int, late: bool, copies: int) -> None:
        worker, name = self.a_busy(which)
        del worker.held[name]
        self.send(lambda: self.scheduler.fail(worker.name, name, "not finite"), copies, late)

    @precondition(lambda self: self.busy())
    @rule(which=WHICH, late=st.booleans(), copies=st.integers(1, 2))
    def gives_back(self, which: int, late: bool, copies: int) -> None:
        worker, name = self.a_busy(which)
        del worker.held[name]
        self.send(lambda: self.scheduler.give_back(worker.name, name), copies, late)

    @rule(
        which=WHICH, error=st.sampled_from(["", "CUDA error"]), copies=st.integers(0, 1), late=st.booleans()
    )
    def leaves(self, which: int, error: str, copies: int, late: bool) -> None:
        """With no copy of the message, it dies without a word."""
        worker = self.workers[which % len(self.workers)]
        self.replace(worker)
        self.send(lambda: self.scheduler.leave(worker.name, error), copies, late)

    def replace(self, worker: Worker) -> None:
        """The worker is gone, and another one comes."""
        self.workers[self.workers.index(worker)] = self.new_worker()

    @rule(which=WHICH)
    def hangs_or_comes_back(self, which: int) -> None:
        worker = self.workers[which % len(self.workers)]
        worker.hangs = not worker.hangs

    # What always holds

    @invariant()
    def counts_match(self) -> None:
        status = self.scheduler.status(self.cursor)
        ended = status.done + status.failed
        assert ended + status.running <= len(KEYS)
        assert not status.over or ended == len(KEYS)
        assert status.problem == ""
        results = [name for name in CONCEPTS if self.store.read_concept(name, "result.json")]
        assert status.done <= len(results), "what counts as done is in the store"

    @invariant()
    def at_most_one_writes_what_is_leased(self) -> None:
        for name in CONCEPTS:
            is_leased_or_over = not self.scheduler.may_write("nobody", name)
            writers = [worker for worker in self.names if self.scheduler.may_write(worker, name)]
            if is_leased_or_over:
                assert len(writers) <= 1

    @precondition(lambda self: self.has_read)
    @invariant()
    def it_is_over_when_all_are(self) -> None:
        status = self.scheduler.status(self.cursor)
        assert self.scheduler.is_over() == (status.done + status.failed == len(KEYS))

    @invariant()
    def what_the_driver_heard_is_in_the_store(self) -> None:
        for name, kind in self.ends.items():
            found = self.store.result(name) if kind == "done" else self.store.failure(name)
            assert found is not None or self.store.result(name) is not None

    # What holds in the end

    def teardown(self) -> None:
        """Whatever happened: once a good worker comes, everything ends, and the driver hears of all of it."""
        if not self.has_read:
            self.scheduler.read()
        good = "the good worker"
        for _ in range(4 * len(KEYS)):
            self.clock.now += TIMEOUT_S + 1  # all the others are silent
            for lease in self.scheduler.take(good, 2).leases:
                assert lease.attempt <= MAX_ATTEMPTS
                examples.finish(self.store, lease.concept_id, **KEYS[lease.concept_id]._asdict())
                self.scheduler.ack(good, lease.concept_id)
        assert self.scheduler.is_over()
        self.scheduler.publish()
        status = self.scheduler.status(self.cursor)
        assert status.over
        assert status.done + status.failed == len(KEYS)
        self.the_driver_asks()
        assert self.ends.keys() == KEYS.keys()
        assert self.ends[BROKEN] == "failed"
        for name, kind in self.ends.items():
            assert (self.store.result(name) if kind == "done" else self.store.failure(name)) is not None


TestJobs = Jobs.TestCase
TestJobs.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
