"""The trainers of a real job, on a machine that isn't theirs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import examples
from tests.support.jobs import Job

pytestmark = pytest.mark.slow


def test_a_job_beside_another_ray(local_ray: None, tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """Each of its processes asks its own Ray. Train's cleaner of placement groups looks for one on the machine if it
    isn't told, and fails when it finds two: the job's and this process's."""
    examples.write_manifest(tmp_path / "data", 1)
    settings = examples.settings(tiny_sd, tiny_clip, "service.workers=1", "tracking.enabled=false")
    job = Job(tmp_path, settings)
    code, said = job.run()
    assert code == 0, said
    assert "1 of 1 concept learned" in said
    assert "multiple active Ray instances" not in job.log()
    assert "Traceback" not in job.log()
