"""The trainers of a real job, on a machine that isn't theirs alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.jobs import Job

pytestmark = pytest.mark.slow


def test_a_job_beside_another_ray(local_ray: None, tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """Each of its processes asks its own Ray. Train's cleaner of placement groups looks for one on the machine if it
    isn't told, and fails when it finds two: the job's and this process's.

    Its Ray has no spot machine, which it would rather have: it goes on with what there is."""
    examples.write_manifest(tmp_path / "data", 1)
    settings = examples.settings(
        *(tiny_sd, tiny_clip, "service.workers=1", "tracking.enabled=false"),
        "service.label_selector={ray.io/market-type: spot}",
        "service.fallback_label_selectors=[{ray.io/market-type: on-demand}]",
        "service.fallback_after_s=2",
        "service.log_format=json",
    )
    job = Job(tmp_path, settings)
    job.environment["RAY_OVERRIDE_LABELS"] = (
        '{"ray.io/market-type": "on-demand"}'  # of the nodes that it starts
    )
    code, said = job.run()
    assert code == 0, said
    assert "1 of 1 concept learned" in said
    assert "workers: 1, on the CPU, on ray.io/market-type=spot, or else ray.io/market-type=on-demand" in said
    assert "no room for workers on ray.io/market-type=spot; trying ray.io/market-type=on-demand" in job.log()
    lines = [json.loads(line) for line in job.log().splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    (begun,) = [line for line in lines if "from step 0 of" in line["message"]]
    assert begun["concept_id"] == "c0"
    assert begun["process"] == "RayTrainWorker"
    assert str(begun["pid"]) in begun["worker"]
    assert "multiple active Ray instances" not in job.log()
    failed = {line.get("process") for line in lines if "Traceback" in line["message"]}
    assert failed <= {"TrainController"}, "which says at length that it found no room"
