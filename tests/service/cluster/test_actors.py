"""Actors that last, on a Ray of one node."""

from __future__ import annotations

import os
from typing import Any

import ray

from tests.support.waiting import wait_for
from textinv_ray.service.cluster.actors import on_this_node, was_restarted


class Lasting:
    def seen(self) -> tuple[bool, int]:
        """(Whether it was restarted, its process's id)."""
        return was_restarted(), os.getpid()


def test_a_killed_actor_comes_back_and_knows_it(local_ray: None) -> None:
    make: Any = ray.remote(Lasting)
    actor = make.options(**on_this_node()).remote()
    before, process = ray.get(actor.seen.remote(), timeout=60)
    assert before is False
    ray.kill(actor, no_restart=False)
    wait_for(lambda: ray.get(actor.seen.remote(), timeout=60)[1] != process)
    assert ray.get(actor.seen.remote(), timeout=60)[0] is True
    assert was_restarted() is False, "a driver is no actor"
    ray.kill(actor)
