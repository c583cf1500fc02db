"""Small tables, read so that an error leaves nothing running."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.commands import REPOSITORY
from textinv_ray.util import parquet

SCRIPT = """
import io, sys, time
from textinv_ray.util import parquet


class Damaged(io.FileIO):
    reads = 0

    def read(self, *arguments):
        Damaged.reads += 1
        if Damaged.reads > 4:
            time.sleep(0.02)  # so that a thread that reads ahead would still be there at the end
        if Damaged.reads == 8:
            raise OSError("damaged")
        return super().read(*arguments)


try:
    parquet.read(Damaged(sys.argv[1]))
except OSError:
    sys.exit(2)
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "x.parquet"
    columns = {f"c{index}": np.random.default_rng(index).random(2000) for index in range(30)}
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def test_columns(table: Path) -> None:
    with table.open("rb") as file:
        found = parquet.read(file, ["c3", "c1"])
    assert found.equals(pq.read_table(table, columns=["c3", "c1"]))
    with pytest.raises(KeyError, match="it has no column d"), table.open("rb") as file:
        parquet.read(file, ["c1", "d"])
    text = pa.table({"a": pa.array([b"\xff"], pa.binary()).view(pa.string())})
    damaged = io.BytesIO()
    pq.write_table(text, damaged)
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        parquet.read(damaged)


def test_an_error_ends_the_process_in_order(table: Path) -> None:
    """With pyarrow's read_table, this process ends by signal 6 nearly every time."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(table)],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (2, "")
