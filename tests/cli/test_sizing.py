"""`textinv plan`."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.commands import textinv


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """Two concepts whose images are nowhere: they aren't looked at."""
    rows = {
        "concept_id": ["a", "b"],
        "images": [["s3://nowhere/a.png"]] * 2,
        "initializer_token": ["cat"] * 2,
    }
    pq.write_table(pa.table(rows), tmp_path / "m.parquet")
    return str(tmp_path / "m.parquet")


def test_an_estimate(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("plan", manifest, "--config", "sdxl", "--gpu", "H100", "--price", "2.5") == 0
    out = capsys.readouterr().out
    assert "m.parquet, configuration sdxl: 2 concepts, 2 images" in out
    assert "cost at 2.5" in out
    assert (
        textinv("plan", manifest, "--config", "sdxl", "--gpu", "h100", "--set", "training.steps=10", "--json")
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["expected_samples"] == 20
    assert [line["gpus"] for line in found["by_gpus"]] == [1, 2]


def test_a_manifest_in_a_store(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    with fsspec.open("memory://plan/m.parquet", "wb") as file:
        file.write(Path(manifest).read_bytes())
    assert textinv("plan", "memory://plan/m.parquet", "--config", "sd15", "--gpu", "t4") == 0
    assert "2 concepts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "sdxl", "--gpu", "h10"], "did you mean 'h100'?"),
        (["--config", "flux", "--gpu", "t4"], "its weights alone are too many"),
        (["--gpu", "h100"], "bundled model, for CPUs"),
        (["--config", "sdxl", "--gpu", "h100", "--price", "inf"], "--price inf: give a number"),
        (["--config", "sdxl", "--gpu", "h100", "--set", "model.path=/nowhere"], "/nowhere"),
    ],
    ids=["unknown", "too small", "bundled", "price", "no model"],
)
def test_errors(manifest: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("plan", manifest, *arguments) == 2
    assert said in capsys.readouterr().err
