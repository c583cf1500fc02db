"""Actors that last, on a Ray of one node."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import ray

from tests.support.waiting import wait_for
from textinv_ray.service.cluster.actors import Call, on_this_node, was_restarted


class Slow:
    def __init__(self) -> None:
        self._told = threading.Event()

    def wait(self) -> int:
        assert self._told.wait(60)
        return 3

    def tell(self) -> None:
        self._told.set()


def test_a_call_is_waited_for_a_little_at_a_time(local_ray: None) -> None:
    make: Any = ray.remote(Slow)
    actor = make.options(**{**on_this_node("textinv:slow"), "max_concurrency": 2}).remote()
    call: Call[int] = Call(actor.wait.remote())
    assert "textinv:slow" in ray.util.list_named_actors()
    assert [call.answer(0.05), call.answer(0)] == [None, None]
    ray.get(actor.tell.remote())
    assert call.answer(60) == 3
    ray.kill(actor)


class Lasting:
    def seen(self) -> tuple[bool, int]:
        """(Whether it was restarted, its process's id)."""
        return was_restarted(), os.getpid()


@pytest.mark.slow
def test_a_killed_actor_comes_back_and_knows_it(local_ray: None) -> None:
    make: Any = ray.remote(Lasting)
    actor = make.options(**on_this_node("textinv:x")).remote()
    before, process = ray.get(actor.seen.remote(), timeout=60)
    assert before is False
    ray.kill(actor, no_restart=False)
    wait_for(lambda: ray.get(actor.seen.remote(), timeout=60)[1] != process)
    assert ray.get(actor.seen.remote(), timeout=60)[0] is True
    assert was_restarted() is False, "a driver is no actor"
    ray.kill(actor)
