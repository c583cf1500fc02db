"""The commands of benchmarks that start jobs or processes of their own run, at a tiny size."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against_script, job, scaling
from benchmarks.public_script import PublicScript
from tests.support import catalogue
from tests.support.commands import REPOSITORY
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest

SCRIPT = """
import sys, time
import numpy, safetensors.numpy
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
if options:
    steps = int(options["max_train_steps"])
    for step in range(steps + 1):
        print(f"\\rSteps:  1%|#  | {step}/{steps} [00:00<00:00]", end="", file=sys.stderr, flush=True)
        time.sleep(0.05)
    import pathlib
    pathlib.Path(options["output_dir"]).mkdir(parents=True)
    assert len(list(pathlib.Path(options["train_data_dir"]).iterdir())) in (1, 2)
    word = {options["placeholder_token"]: numpy.ones((1, 32), numpy.float32)}
    safetensors.numpy.save_file(word, options["output_dir"] + "/learned_embeds.safetensors")
"""


def command(name: str, *options: str) -> dict[str, Any]:
    """The same in a process of its own, for those that start a Ray."""
    path = Path(options[-1])
    subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / name), *options[:-1], "--json", str(path)],
        check=True,
    )
    return dict(json.loads(path.read_text()))


@pytest.mark.slow  # starts Ray
def test_the_parts_of_a_concept(settings: list[str], tmp_path: Path) -> None:
    found = command("breakdown.py", "--steps=0", "--limit=1", *settings, str(tmp_path / "f.json"))
    parts = {row[""]: row["per cent"] for row in found["concept"]}
    assert {"steps", "samples and scores", "latents, prompts, initial state"} < set(parts)


@pytest.mark.slow  # starts Ray
def test_against_script(manifest: str, settings: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    predictor = catalogue.predictor_file(tmp_path / "p.safetensors", JobConfig.load("mini", settings[1::2]))
    options = [
        f"--script={script}",
        f"--manifest={manifest}",
        "--script-steps=6",
        "--seeds=2",
        "--at-once=2",
        "--timed=2",
        "--repeats=1",
        "--images=1",
        f"--words={tmp_path / 'words'}",
        "--holdout=1",
        f"--predictor={predictor}",
        "--predicted-steps=1",
    ]
    found = command("against_script.py", *options, *settings, str(tmp_path / "f.json"))
    table = {row[""]: row for row in found["table"]}
    assert table["steps per concept"]["script"] == 6
    assert table["steps per concept"]["ours"] == 4
    assert table["steps per concept"]["predicted"] == 1
    assert table["steps per second"]["ours"] > 0
    assert set(found["scores"]) == {"initializer", "script", "ours", "predicted"}
    timed = [run["seconds"] for run in found["script"].values()]
    assert list(found["script"]) == ["two-seed2", "two-seed3"]
    assert table["seconds per concept"]["script"] == pytest.approx(sum(timed) / 4)  # two share the machine

    learned = set((tmp_path / "words").iterdir())
    assert {path.name.rpartition("-")[0] for path in learned} == {"one-seed0", "one-seed1"}


def test_words_of_a_script_are_learned_once(
    manifest: str, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it were installed: its stand-in imports torch, which takes seconds in each run of the script
    torchvision = types.ModuleType("torchvision")
    torchvision.__spec__ = ModuleSpec("torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    config = JobConfig.load("mini", settings[1::2])
    concepts = against_script.with_seeds(job.concepts_of(manifest, config, None), 1)
    options = argparse.Namespace(
        words=tmp_path / "words", timed=1, repeats=0, at_once=1, set=[], predictor=None
    )
    script = tmp_path / "script.py"

    def learn(text: str) -> set[Path]:
        script.write_text(text)
        public = PublicScript(script, 6, [], 1)
        with tempfile.TemporaryDirectory() as folder:
            against_script.learn(public, concepts, options, config, Path(folder))
        return set((tmp_path / "words").iterdir())

    (first,) = learn(SCRIPT)
    learned_at = first.stat().st_mtime_ns
    assert learn(SCRIPT) == {first}
    assert first.stat().st_mtime_ns == learned_at
    assert len(learn(SCRIPT + "# another script, so other words") - {first}) == 1


@pytest.mark.slow  # starts Ray, three times
def test_scaling(settings: list[str], tmp_path: Path) -> None:
    sizes = ["--workers=1", "--concepts=2", "--simulated=2", "--seconds=1", "--repeats=1"]
    found = command("scaling.py", *sizes, *settings, str(tmp_path / "f.json"))
    assert [row["workers"] for row in found["rows"]] == ["1 real", "2 simulated"]
    assert found["rows"][1]["efficiency"] <= 1


def test_scaling_of_real_workers(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs over so many concepts, in turns, and what is made of their times; `test_scaling` runs real ones."""
    seconds, ran = iter((20.0, 16.0, 24.0, 12.0)), []

    def run(manifest: Path, output: Path, config: str, given: Sequence[str]) -> job.Run:
        found = JobConfig.load(config, given)
        opened = Manifest.open(str(manifest))
        checks.check(opened, found)
        ran.append((output.name, found.service.workers))
        return job.Run(str(output), opened.num_rows, 0, 0.0, 0.0, next(seconds), 0, 0)

    monkeypatch.setattr(job, "run", run)
    rows = scaling.real([1, 2], 2, 10, settings[1::2], tmp_path)
    assert ran == [("1-0", 1), ("2-0", 2), ("1-1", 1), ("2-1", 2)]
    assert [row["workers"] for row in rows] == ["1 real", "2 real"]
    one, two = ((3600 * 10 / few + 3600 * 10 / many) / 2 for few, many in ((20, 24), (16, 12)))
    assert [row["concepts per hour"] for row in rows] == [pytest.approx(one), pytest.approx(two)]
    assert [row["efficiency"] for row in rows] == [1, pytest.approx(two / 2 / one)]


@pytest.mark.slow  # starts Ray
def test_startup(manifest: str, settings: list[str], tmp_path: Path) -> None:
    found = command(
        "startup.py", f"--manifest={manifest}", "--repeats=1", *settings, str(tmp_path / "f.json")
    )
    *moments, nothing = found["table"]
    assert [row["since the command"] for row in moments] == sorted(
        row["since the command"] for row in moments
    )
    assert 0 < nothing["seconds"] < moments[-1]["since the command"]


@pytest.mark.slow  # starts Ray
def test_scale(tmp_path: Path) -> None:
    found = command("scale.py", "--rows=300", "--workers=1", str(tmp_path / "f.json"))
    assert found["concepts per second"] > 0
    assert found["restart: the command, to `nothing to do`, s"] > 0


@pytest.mark.slow
def test_scale_of_a_store_alone(tmp_path: Path) -> None:
    found = command("scale.py", "--rows=20", "--store-only", str(tmp_path / "f.json"))
    assert found["restart: the command, to `nothing to do`, CPU s"] > 0
    assert found["read all results, write results.parquet, MB"] > 10
