"""Public data sets of evaluation protocols in their own layout, with small pictures of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from textinv_ray.config import protocol


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def dreambench(folder: Path) -> Path:
    """As a clone of google/dreambooth."""
    for number, (name, subject) in enumerate(protocol.load("dreambench").subjects.items()):
        for index in range(subject.images or 0):
            _picture(folder / "dataset" / name / f"{index:02d}.jpg", 10 * number + index)
    (folder / "dataset" / "prompts_and_classes.txt").write_text("Classes")
    return folder


def customconcept101(folder: Path) -> Path:
    """As benchmark_dataset.zip unpacks."""
    for number, name in enumerate(protocol.load("customconcept101").subjects):
        for index in range(1 + number % 2):
            _picture(folder / "benchmark_dataset" / name / f"{index + 1}.jpeg", 3 * number + index)
    return folder


def dreambench_plus(folder: Path) -> Path:
    """As the data set of the repository unpacks: 150 pictures, each with its caption file."""
    kinds = {"live_subject/animal": 60, "live_subject/human": 30, "object": 30, "style": 30}
    for kind, count in kinds.items():
        for index in range(count):
            name = f"tiny {kind.rpartition('/')[2]}"
            _picture(folder / "data" / "images" / kind / f"{index:02d}.jpg", index)
            captions = folder / "data" / "captions" / kind / f"{index:02d}.txt"
            captions.parent.mkdir(parents=True, exist_ok=True)
            prompts = [f"A {name} in place {number}" for number in range(9)]
            captions.write_text("\n".join([name, *prompts]) + "\n")
    return folder
