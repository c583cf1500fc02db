"""The manifest through Ray Data: what its rows become, and how a consumer that isn't in a hurry reads it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import examples
from tests.support.waiting import wait_for
from tests.support.web import serve
from textinv_ray.concepts import prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import Preparation
from textinv_ray.service.models import sources
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

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
        assert found[name]["shape"] == "16x16"
        assert found[name]["error"] == ""
    assert "missing.png" in found["c3"]["error"]
    assert found["c3"]["concept"] == found["c4"]["concept"] == b""


def test_manifests_as_other_programs_leave_them(
    local_ray: None, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    """Parts of any name below folders that look like columns; what the plan read is what is prepared."""
    written = examples.write_manifest(tmp_path / "data", 5, {"c1": {"steps": 9}})
    rates = pa.array([None, 0.001, None, None, None], pa.float64())
    table = pq.read_table(written).append_column("learning_rate", rates)
    folder = tmp_path / "data" / "learning_rate=0.5" / "steps=4"
    folder.mkdir(parents=True)
    pq.write_table(table.slice(0, 2), folder / "a?.pq")
    pq.write_table(table.slice(2, 3), folder / "b.parquet")
    written.unlink()
    manifest = Manifest.open(str(tmp_path / "data" / "*" / "*"))
    manifest = Manifest(manifest.uri, str(tmp_path / "data"), manifest.parts)  # where its images are
    config = examples.config(tiny_sd, tiny_clip, "training.steps=6")
    facts = sources.facts(config.model)
    preparation = Preparation(manifest, config, facts, str(tmp_path / "out"), frozenset(), 0.5)
    found = {row["concept_id"]: row for row in preparation.iter_rows({"c0", "c1", "c4"})}
    expected = {
        row["concept_id"]: prepare.make(
            row, config, base=manifest.base, resolution=facts.resolution, model_identity=facts.identity
        ).to_bytes()
        for row in manifest.rows()
        if row["concept_id"] in found
    }
    assert {name: row["concept"] for name, row in found.items()} == expected
    assert Concept.from_bytes(found["c1"]["concept"]).learning_rate == 0.001
    with pytest.raises(UserError, match=r"planned 2 concepts of the manifest, received 1: .* for c9\."):
        list(preparation.iter_rows({"c0", "c9"}))
    pq.write_table(table.slice(2, 2), folder / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet: was written anew while it was being read; start again"):
        list(preparation.iter_rows({"c0", "c4"}))


def test_what_cannot_be_reached_comes_last(
    local_ray: None, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    """Its retries hold nobody up; it fails with its URI, or succeeds when the server is back."""
    asked: list[str] = []

    def answer(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return (503 if len(asked) == 1 else 200), (tmp_path / "data" / "c3-0.png").read_bytes()

    with serve(answer) as host:
        changes: dict[str, dict[str, Any]] = {
            "c0": {"images": ["http://127.0.0.1:9/x.png?sig=SECRET"]},
            "c1": {"images": [f"http://{host}/back.png"]},
            "c2": {"images": ["c2-0.png", "missing.png"]},
        }
        manifest = Manifest.open(str(examples.write_manifest(tmp_path / "data", 20, changes)))
        config = examples.config(tiny_sd, tiny_clip, "data.download_retry_s=1")
        preparation = Preparation(
            manifest, config, sources.facts(config.model), str(tmp_path / "out"), frozenset(), 0.5
        )
        rows = list(preparation.iter_rows({f"c{number}" for number in range(20)}))
    assert sorted(row["concept_id"] for row in rows[-2:]) == ["c0", "c1"]
    assert len({row["concept_id"] for row in rows}) == len(rows) == 20
    errors = {row["concept_id"]: row["error"] for row in rows if row["error"]}
    assert sorted(errors) == ["c0", "c2"]
    assert errors["c0"].startswith("image http://127.0.0.1:9/x.png: ClientConnectorError")
    assert "missing.png: doesn't exist" in errors["c2"]


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
