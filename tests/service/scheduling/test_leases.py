"""Leases: every concept ends exactly once, whatever workers do; attempts are capped; late results are fine."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clock import Clock
from textinv_ray.service.scheduling.leases import Leases


def make(count: int, max_attempts: int = 3) -> tuple[Leases, Clock]:
    clock = Clock()
    leases = Leases(timeout_s=10, max_attempts=max_attempts, clock=clock)
    for index in range(count):
        leases.offer(f"c{index}", index, 100)
    leases.close()
    return leases, clock


def ids(found: Any) -> list[str]:
    return [lease.concept_id for lease in found]


def test_taken_once_in_order() -> None:
    leases, _ = make(5)
    assert ids(leases.take("w1", 2)) == ["c0", "c1"]
    assert ids(leases.take("w2", 3)) == ["c2", "c3", "c4"]
    assert leases.take("w1", 1) == []
    assert not leases.over


def of_shapes(shapes: str) -> Leases:
    """Concepts of these shapes, a letter each: "AB" are a0 and b1. More may come."""
    leases = Leases(timeout_s=10, max_attempts=3, clock=Clock())
    for index, shape in enumerate(shapes):
        leases.offer(f"{shape.lower()}{index}", index, 100, shape)
    return leases


def test_leases_are_of_one_shape() -> None:
    leases = of_shapes("ABBABC")
    assert (leases.waiting_of("B"), leases.waiting_of(""), leases.waiting_of("D")) == (3, 6, 0)
    assert ids(leases.take("w", 2)) == ["b1", "b2"], "most are of that shape"
    assert ids(leases.take("w", 2, shape="B")) == ["b4"]
    assert ids(leases.take("w", 2, shape="B")) == [], "its pack isn't empty yet"
    assert ids(leases.take("v", 4)) == ["a0", "a3"]
    assert ids(leases.take("w", 2)) == ["c5"]


def test_what_was_lost_chooses_the_shape() -> None:
    leases = of_shapes("AABBB")
    (lost,) = leases.take("w", 1, shape="A")
    leases.leave("w", "it died")
    assert ids(leases.take("v", 9)) == [lost.concept_id, "a1"]


def test_one_that_is_learned_alone_holds_up_no_other_shape() -> None:
    leases = of_shapes("AB")
    for _ in range(2):
        leases.take("w", 1, shape="A")
        leases.leave("w", "it died")
    assert ids(leases.take("v", 1, shape="B")) == ["b1"]
    assert ids(leases.take("v", 1)) == [], "beside b1, whose result is still written"
    leases.ack("v", "b1")
    assert ids(leases.take("v", 1)) == ["a0"]


def test_shares_of_a_small_job() -> None:
    """A worker whose pack would hold everything leaves the others their share."""
    leases, _ = make(9)
    assert len(leases.take("w1", 64, expected_workers=4)) == 3
    assert leases.take("w1", 61, expected_workers=4) == []
    assert [len(leases.take(f"w{index}", 64, expected_workers=4)) for index in (2, 3, 4)] == [3, 3, 0]


def test_shares_when_the_others_never_came() -> None:
    leases, _ = make(9)
    assert len(leases.take("w1", 64, expected_workers=1)) == 9


def test_over_when_all_are_done_or_failed() -> None:
    leases, _ = make(2)
    leases.take("w", 2)
    leases.ack("w", "c0")
    assert not leases.over
    leases.fail("w", "c1", "not finite")
    assert leases.over
    assert (leases.done, leases.failed) == (1, 1)
    assert [(event.kind, event.error) for event in leases.events] == [("done", ""), ("failed", "not finite")]


def test_not_over_while_more_may_come() -> None:
    leases = Leases(10, 3)
    assert not leases.over
    leases.close()
    assert leases.over


def test_silence_frees_the_concepts_and_they_come_first() -> None:
    leases, clock = make(3)
    leases.take("w1", 1)
    clock.now = 6
    leases.beat("w1", {"c0": 40}, 40)
    clock.now = 15
    assert ids(leases.take("w2", 1)) == ["c1"]
    clock.now = 17
    assert ids(leases.take("w2", 1)) == ["c0"]
    assert leases.beat("w1", {"c0": 41}, 41) == ["c0"], "the first worker is told to drop it"


def test_late_result_is_good_and_counted_once() -> None:
    leases, clock = make(1)
    leases.take("w1", 1)
    clock.now = 11
    assert ids(leases.take("w2", 1)) == ["c0"]
    leases.ack("w1", "c0")
    assert (leases.done, leases.over) == (1, True)
    assert leases.beat("w2", {"c0": 3}, 3) == ["c0"]
    leases.ack("w2", "c0")
    leases.fail("w2", "c0", "too late")
    assert (leases.done, leases.failed) == (1, 0)


def test_failure_of_a_lost_concept_is_not_believed() -> None:
    leases, clock = make(1)
    leases.take("w1", 1)
    clock.now = 11
    leases.take("w2", 1)
    assert not leases.fail("w1", "c0", "whatever")
    assert leases.failed == 0


def test_leaving_in_good_order_costs_no_attempt() -> None:
    leases, _ = make(1)
    for _ in range(10):
        assert ids(leases.take("w", 1)) == ["c0"]
        leases.leave("w")
    assert leases.failed == 0


def test_attempts_are_capped_with_the_last_error() -> None:
    leases, _ = make(1, max_attempts=3)
    for attempt in (1, 2, 3):
        (lease,) = leases.take(f"w{attempt}", 1)
        assert lease.attempt == attempt
        leases.leave(f"w{attempt}", f"crash {attempt}")
    assert leases.over
    assert leases.events[-1].error == "crash 3 (3 of 3 attempts)"


def test_progress_forgives_losses() -> None:
    """On spot machines a long concept may be interrupted any number of times, as long as it gets further."""
    leases, _ = make(1, max_attempts=2)
    for step in range(10, 100, 10):
        leases.take("w", 1)
        leases.beat("w", {"c0": step}, step)
        leases.saved("w", "c0", step)
        leases.leave("w", "preempted")
    assert leases.failed == 0
    leases.take("w", 1)
    leases.saved("w", "c0", 90)  # no further than before
    leases.leave("w", "crash")
    assert leases.failed == 1


def test_a_suspect_works_alone() -> None:
    """What took two workers down gets one to itself, so that its neighbours don't run out of attempts."""
    leases, _ = make(4, max_attempts=3)
    for _ in range(2):
        leases.take("w", 1)
        leases.leave("w", "crash")
    assert ids(leases.take("w", 2)) == ["c0"]
    assert leases.take("w", 2) == []
    assert ids(leases.take("v", 2)) == ["c1", "c2"]
    leases.leave("w")
    assert ids(leases.take("v", 2)) == ["c3"], "not beside others"


def test_back_from_silence_it_keeps_what_nobody_took() -> None:
    leases, clock = make(2)
    leases.take("w", 2)
    clock.now = 11
    assert ids(leases.take("v", 1)) == ["c0"]
    assert leases.beat("w", {"c0": 5, "c1": 5}, 10) == ["c0"]
    assert leases.take("v", 1) == [], "c1 is the first one's again"


def test_giving_back_what_came_back() -> None:
    """A suspect that its silent worker got anew, hearing only then that it had lost it: it must not hang."""
    leases, clock = make(1)
    leases.take("w", 1)
    leases.leave("w", "crash")
    leases.take("w", 1)
    clock.now = 11
    assert leases.beat("w", {"c0": 1}, 1) == ["c0"]
    assert ids(leases.take("w", 1)) == ["c0"]
    leases.give_back("w", "c0")
    assert ids(leases.take("v", 1)) == ["c0"]
    leases.give_back("w", "c0")
    assert leases.take("w", 1) == [], "it is the other's now"


def test_longest_first_but_those_begun_before_all() -> None:
    leases = Leases(10, 3, Clock())
    for concept_id, steps in (("short", 10), ("long", 500), ("middle", 100), ("other", 100)):
        leases.offer(concept_id, None, steps)
    assert ids(leases.take("w", 1)) == ["long"]
    leases.ack("w", "long")
    leases.take("w", 3)
    leases.give_back("w", "short")
    leases.give_back("w", "other")
    leases.offer("longest", None, 1000)
    assert ids(leases.take("w", 3)) == ["other", "short", "longest"]


def test_a_new_table_learns_from_heartbeats_who_has_what() -> None:
    """The scheduler's process died; workers went on meanwhile."""
    leases = Leases(10, 3, Clock())
    assert leases.beat("w", {"a": 40, "b": 3}, 43) == []
    leases.ack("w", "b")
    for concept_id in ("a", "b", "c"):
        leases.offer(concept_id, None, 100)
    leases.close()
    assert ids(leases.take("v", 5)) == ["c"]
    assert (leases.done, leases.running) == (1, 2)
    leases.fail("w", "a", "not finite")
    leases.ack("v", "c")
    assert leases.over
    assert (leases.done, leases.failed) == (2, 1)


def test_what_a_new_table_never_hears_of_is_dropped() -> None:
    leases = Leases(10, 3, Clock())
    assert leases.beat("w", {"removed": 40}, 40) == []
    leases.close()
    assert leases.beat("w", {"removed": 41}, 41) == ["removed"]
    assert leases.over


def test_steps_that_had_to_be_taken_again() -> None:
    leases, _ = make(1)
    leases.take("w", 1)
    leases.beat("w", {"c0": 40}, 40)
    leases.leave("w", "crash")
    leases.take("v", 1)
    leases.beat("v", {"c0": 31}, 1)
    leases.beat("v", {"c0": 35}, 5)
    assert leases.steps_redone == 9


def test_who_may_write() -> None:
    """Whoever learns a concept, until it is over or another's."""
    leases, clock = make(2)
    leases.take("late", 1)
    assert leases.may_write("late", "c0")
    clock.now += 11
    assert leases.may_write("late", "c0"), "nobody else has it"
    leases.take("other", 1)
    assert not leases.may_write("late", "c0")
    assert leases.may_write("other", "c0")
    leases.ack("other", "c0")
    assert not leases.may_write("other", "c0")
    assert leases.may_write("late", "from a scheduler before"), "not known here yet"


def test_steps_for_the_progress_line() -> None:
    leases, _ = make(2)
    leases.take("w", 2)
    leases.beat("w", {"c0": 30, "c1": 10}, 40)
    assert (leases.steps_reached, leases.steps_computed) == (40, 40)
    leases.ack("w", "c0")
    assert leases.steps_reached == 110
    leases.leave("w", "crash")
    assert leases.steps_computed == 40


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["take", "beat", "saved", "ack", "late ack", "fail", "leave", "crash", "wait"]),
        st.integers(0, 2),
        st.integers(0, 7),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_every_concept_ends_exactly_once(actions: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    leases = Leases(timeout_s=10, max_attempts=2, clock=clock)
    for index in range(8):
        leases.offer(f"c{index}", index, 100, "AAB"[index % 3])
    leases.close()
    held: dict[str, set[str]] = {f"w{index}": set() for index in range(3)}
    for action, worker_index, concept_index in actions:
        worker, concept = f"w{worker_index}", f"c{concept_index}"
        clock.now += 1
        if action == "take":
            shape = ("", "A", "B")[concept_index % 3]
            given = set(ids(leases.take(worker, 2, shape=shape)))
            assert {"AAB"[int(name[1:]) % 3] for name in given} <= ({shape} if shape else {"A", "B"})
            assert len({"AAB"[int(name[1:]) % 3] for name in given}) <= 1
            held[worker] |= given
        elif action == "beat":
            held[worker] -= set(leases.beat(worker, dict.fromkeys(held[worker], concept_index), 1))
        elif action == "saved":
            leases.saved(worker, concept, concept_index)
        elif action == "ack" and concept in held[worker]:
            leases.ack(worker, concept)
            held[worker].discard(concept)
        elif action == "late ack":
            leases.ack(worker, concept)
        elif action == "fail" and concept in held[worker]:
            leases.fail(worker, concept, "x")
            held[worker].discard(concept)
        elif action in ("leave", "crash"):
            leases.leave(worker, "x" if action == "crash" else "")
            held[worker] = set()
        elif action == "wait":
            clock.now += 11
    # Then a good worker comes, and all the others are silent.
    for _ in range(30):
        clock.now += 11
        for lease in leases.take("good", 3):
            leases.ack("good", lease.concept_id)
    assert leases.over
    ends = [event.concept_id for event in leases.events if event.kind != "saved"]
    assert sorted(ends) == [f"c{index}" for index in range(8)]
    assert leases.done + leases.failed == 8
