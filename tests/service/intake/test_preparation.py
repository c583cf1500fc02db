"""The manifest through Ray Data: what its rows become, and how a consumer that isn't in a hurry reads it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import examples
from tests.support.waiting import wait_for
from textinv_ray.concepts import prepare
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import Preparation
from textinv_ray.service.models import sources
from textinv_ray.service.store.store import Store

CONCEPTS, STEPS, REST_S = 400, 20, 0.9


def test_rows_of_the_wanted_concepts(local_ray: None, tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """Each once, those with most steps first; with what it becomes, why it can't, or that it is done."""
    changes: dict[str, dict[str, Any]] = {"c1": {"steps": 9}, "c3": {"images": ["missing.png"]}}
    manifest = Manifest.open(str(examples.write_manifest(tmp_path / "data", 5, changes)))
    config = examples.config(tiny_sd, tiny_clip, "training.steps=6")
    facts = sources.facts(config.model)
    expected = {
        row["concept_id"]: prepare.make(
            row, config, base=manifest.base, resolution=facts.resolution, model_identity=facts.identity
        )
        for row in manifest.rows()
        if row["concept_id"] != "c3"
    }
    store = Store(str(tmp_path / "out"))
    examples.finish(store, "c0", fingerprint="of another configuration")
    examples.finish(store, "c4", fingerprint=expected["c4"].fingerprint)
    preparation = Preparation(manifest, config, facts, store.uri, {"c0", "c4"}, 0.5)
    rows = list(preparation.iter_rows({"c0", "c1", "c3", "c4"}))
    assert rows[0]["concept_id"] == "c1"
    found = {row["concept_id"]: row for row in rows}
    assert len(rows) == len(found)
    assert {name: (row["steps"], row["done"]) for name, row in found.items()} == {
        "c0": (6, False),
        "c1": (9, False),
        "c3": (6, False),
        "c4": (6, True),
    }
    for name in ("c0", "c1"):
        assert found[name]["concept"] == expected[name].to_bytes()
        assert found[name]["error"] == ""
    assert "missing.png" in found["c3"]["error"]
    assert found["c3"]["concept"] == found["c4"]["concept"] == b""


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
