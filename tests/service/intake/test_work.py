"""What `textinv plan` reads of a manifest: each row's steps, from where it starts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake import waves, work

WARM = ("training.steps=100", "training.batch_size=2", "training.warm_start.steps=25")


def manifest(tmp_path: Path, columns: dict[str, object]) -> Manifest:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    return Manifest.open(str(tmp_path / "m.parquet"))


def many(tmp_path: Path, count: int, **columns: object) -> Manifest:
    ids = [f"c{number:02}" for number in range(count)]
    return manifest(tmp_path, {"concept_id": ids, "images": [["a.png"]] * count, **columns})


def test_its_own_steps_and_batch_sizes(tmp_path: Path) -> None:
    """Where it has them; null means the configuration's."""
    opened = manifest(
        tmp_path,
        {
            "concept_id": ["a", "b", "c"],
            "images": [["a.png"], ["b.png"] * 3, ["c.png"] * 5],
            "steps": pa.array([100, None, 50], pa.int64()),
            "batch_size": pa.array([None, 8, 2], pa.int64()),
        },
    )
    found = work.of(opened, JobConfig.load("sd15", ["training.steps=1000", "training.batch_size=4"]))
    assert (found.concepts, found.images, found.batch_size) == (3, 9, 8)
    assert found.samples == found.most_samples == 400 + 8000 + 100
    assert found.longest == 8000


def test_rows_that_start_from_files_take_the_steps_of_warm_starts(tmp_path: Path) -> None:
    columns = {
        "init_from": ["w.safetensors", "auto", None, "w.safetensors"],
        "initializer_token": [None, None, "cat", None],
        "steps": pa.array([None, None, None, 7], pa.int64()),
    }
    opened = many(tmp_path, 4, **columns)
    assert work.of(opened, JobConfig.load("sd15", WARM)).samples == 2 * (25 + 100 + 100 + 7)
    of_job = JobConfig.load("sd15", [*WARM, "training.init_from=w.safetensors"])
    assert work.of(many(tmp_path, 3), of_job).samples == 2 * 3 * 25


@pytest.mark.parametrize(
    ("first", "warm"),
    [(10, 15), (20, 5), (25, 0), (99, 0)],
)
def test_with_waves_the_rest_is_predicted(tmp_path: Path, first: int, warm: int) -> None:
    config = JobConfig.load("sd15", [*WARM, f"service.waves.first={first}"])
    found = work.of(many(tmp_path, 25), config)
    assert found.samples == 2 * (100 * (25 - warm) + 25 * warm)
    assert found.longest == 2 * (125 if warm else 100), "the waves follow each other"


def test_with_waves_rows_keep_their_own_start(tmp_path: Path) -> None:
    config = JobConfig.load("sd15", [*WARM, "service.waves.first=10"])
    own = many(tmp_path, 12, init_from=["vocabulary_mean"] * 11 + [None])
    assert work.of(own, config).samples == 2 * 100 * 12


def test_words_of_a_size_that_the_first_part_lacks_are_learned_plainly(tmp_path: Path) -> None:
    config = JobConfig.load("sd15", [*WARM, "service.waves.first=12"])
    plain = many(tmp_path, 30)
    outside = sorted({row["concept_id"] for row in plain.rows()} - waves.first_part(plain, config))
    two = [2 if row["concept_id"] in outside[:4] else None for row in plain.rows()]
    found = work.of(many(tmp_path, 30, num_vectors=pa.array(two, pa.int64())), config)
    assert found.samples == 2 * (100 * (12 + 4) + 25 * 14)
