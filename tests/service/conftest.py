"""A Ray that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# A token that a test's Ray leaves in the home folder would lock people out of the Ray they start next.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this process alone."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
