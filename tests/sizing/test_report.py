"""An estimate as people, programs and the documentation see it."""

from __future__ import annotations

import io
import json

from rich.console import Console

from textinv_ray.config.job import JobConfig
from textinv_ray.sizing import report, tables
from textinv_ray.sizing.estimates import Estimate, Work


def made(preset: str, gpu: str) -> tuple[Estimate, JobConfig]:
    config = JobConfig.load(preset)
    return Estimate.of(Work.of_equal(3, 5, config), config, gpu), config


def test_a_screen() -> None:
    out = io.StringIO()
    report.show(Console(file=out, width=200), *made("sdxl", "h100"), "m.parquet, configuration sdxl", 2.5)
    text = out.getvalue()
    assert "3 concepts, 15 images" in text
    assert "activations kept" in text
    assert "computed, not measured" in text
    assert "cost at 2.5" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("   ")] == ["1", "2"]


def test_json_has_the_same() -> None:
    estimate, _ = made("sdxl", "h100")
    found = json.loads(json.dumps(report.as_json(estimate, 2.5)))
    assert found["pack"] == estimate.pack
    one, two = found["by_gpus"]
    assert one["cost"] == 2.5 * one["gpu_hours"]
    assert two["gpus"] == 2
    assert "cost" not in json.dumps(report.as_json(estimate, None))


def test_the_documentations_table() -> None:
    head, _, *rows = report.gpus_table().splitlines()
    assert head == "| GPU | `sd15` | `sd21` | `sdxl` | `sd35` | `flux` | `sana` | `klein` |"
    assert len(rows) == len(tables.devices()) - 1
    t4 = next(row for row in rows if row.startswith("| `t4`"))
    assert t4.endswith("- | - | - | - |")
    estimate, _ = made("sd15", "h100")
    h100 = next(row for row in rows if row.startswith("| `h100`"))
    assert f"; {estimate.concepts_per_hour:.3g} |" in h100
