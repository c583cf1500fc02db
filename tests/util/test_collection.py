"""Python's search for cycles among objects is off for as long as was asked, and then as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from textinv_ray.util.collection import no_cycle_search


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def interrupted() -> None:
    with no_cycle_search():
        raise ValueError("interrupted")


def test_off_within_and_on_again() -> None:
    with no_cycle_search():
        assert not gc.isenabled()
        with no_cycle_search():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer block has not ended"
    assert gc.isenabled()
    with pytest.raises(ValueError, match="interrupted"):
        interrupted()
    assert gc.isenabled()


def test_off_stays_off() -> None:
    gc.disable()
    with no_cycle_search():
        pass
    assert not gc.isenabled()
