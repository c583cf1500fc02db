"""Training within minutes: what it sends back is whole, and what it can't do is refused."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from training import minutes, unet
from training.common import MODELS


def test_models_curves_and_pictures_come_back_in_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("unet/log.jsonl", "unet/grid.png", "unet/checkpoint.safetensors", "drawings/sheet.png"):
        path = minutes.BUILD / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setattr(minutes, "PART_BYTES", 300_000)
    count = minutes.pack_models(Path("out"), ["mini-judge"])
    parts = sorted(Path("out").iterdir())
    assert [part.name for part in parts] == [f"model.tar.{number:02d}" for number in range(count)]
    assert count > 1
    assert max(part.stat().st_size for part in parts) == 300_000
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
        tar.extractall("back", filter="data")
    back = Path("back") / MODELS.relative_to(minutes.ROOT) / "mini-judge"
    for path in (MODELS / "mini-judge").iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in Path("back/build/mini").rglob("*.*")) == ["grid.png", "log.jsonl"]


def test_unknown_parts_are_refused() -> None:
    assert minutes.some_parts("decoder,unet") == ["decoder", "unet"]
    with pytest.raises(argparse.ArgumentTypeError, match="name some of vae, scorers, decoder, unet"):
        minutes.some_parts("unet,scorer")


def test_a_stage_that_fails_fails_the_command() -> None:
    good, bad = (subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (0, 3))
    with pytest.raises(subprocess.CalledProcessError) as error:
        minutes.finish(good, bad)
    assert error.value.returncode == 3


def test_a_stage_without_time_ends_by_its_first_step() -> None:
    assert float(minutes.hours(-5)) * 3600 == pytest.approx(1, rel=0.01)


def test_the_unet_can_be_made_to_predict_whatever_its_trainer_knows() -> None:
    assert set(minutes.PREDICTIONS) == set(unet.PREDICTIONS)


def test_training_goes_on_with_what_the_bundled_weights_predict() -> None:
    schedule = json.loads((MODELS / "mini-sd" / "scheduler" / "scheduler_config.json").read_text())
    assert minutes.PREDICTIONS[0] == unet.Recipe.prediction
    assert unet.PREDICTIONS[unet.Recipe.prediction]["prediction_type"] == schedule["prediction_type"]
