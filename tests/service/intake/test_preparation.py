"""The manifest through Ray Data, read by a consumer that isn't in a hurry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import examples
from tests.support.waiting import wait_for
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import Preparation
from textinv_ray.service.models import sources

CONCEPTS, STEPS, REST_S = 400, 20, 0.9


@pytest.mark.slow
def test_the_scheduler_rests_and_waits(
    local_ray: None, tmp_path: Path, tiny_sd: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler takes the next row when a worker has room: hours later, it may be."""
    import ray
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    times: list[float] = []

    class Note(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            times.append(time.monotonic())

    config = examples.config(tiny_sd, tiny_clip)
    manifest = Manifest.open(str(examples.write_manifest(tmp_path / "data", CONCEPTS)))
    preparation = Preparation(
        manifest, config, sources.facts(config.model), str(tmp_path / "out"), frozenset(), 0.5
    )
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", REST_S / 3)
    monkeypatch.setattr(context, "custom_execution_callback_classes", [Note])
    rows = iter(preparation.iter_rows({f"c{number}" for number in range(CONCEPTS)}))
    found = [next(rows)["concept_id"]]
    wait_for(lambda: len(times) > STEPS and times[-1] - times[-1 - STEPS] > REST_S, 60)
    found += [row["concept_id"] for row in rows]
    assert sorted(found) == sorted(f"c{number}" for number in range(CONCEPTS))
