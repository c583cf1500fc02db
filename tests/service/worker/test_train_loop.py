"""Workers that can't start say so to the scheduler, whatever keeps them from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import examples
from tests.support.rows import Rows
from textinv_ray.service.scheduling.scheduler import Scheduler
from textinv_ray.service.store.keys import Key
from textinv_ray.service.worker.train_loop import train_loop


@pytest.fixture
def setup(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> dict[str, Any]:
    keys = {"c0": Key("row", "stamp")}
    output = str(tmp_path / "out")
    scheduler = Scheduler(Rows.numbered(1), keys, output, ahead=9, lease_timeout_s=60, max_attempts=1)
    scheduler.read()
    config = examples.config(tiny_sd, tiny_clip).model_dump(mode="json")
    return {"scheduler": scheduler, "config": config, "output": output}


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("output", "nosuch://bucket/out", "nosuch"),
        ("config", {"nonsense": 1}, "nonsense"),
        ("config", {"model": {"path": "/no/such/model"}}, "/no/such/model"),
    ],
)
def test_what_this_node_cant_use(setup: dict[str, Any], part: str, value: object, why: str) -> None:
    with pytest.raises(Exception, match=why):
        train_loop({**setup, part: value})
    problem = setup["scheduler"].status(0).problem
    assert problem.startswith("no worker could start: ")
    assert why in problem


def test_a_package_that_this_node_lacks(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textinv_ray.service.worker.worker", None)
    monkeypatch.delattr("textinv_ray.service.worker.worker", raising=False)
    with pytest.raises(ImportError):
        train_loop(setup)
    assert "textinv_ray.service.worker" in setup["scheduler"].status(0).problem


def test_nothing_is_loaded_when_all_is_over(setup: dict[str, Any]) -> None:
    setup["scheduler"].stop()
    train_loop({**setup, "output": "nosuch://bucket/out"})
    assert not setup["scheduler"].status(0).problem
