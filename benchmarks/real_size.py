"""The whole command on a model of real size with random weights: does it start, learn, review and store, and in
which memory?

    python benchmarks/real_size.py FOLDER [--model sdxl|sd15] [--side 512] [--steps 2] [--json PATH]

FOLDER gets the model, if it isn't there yet (7 GB for SDXL), and the output. Words of random weights mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import measure, random_models
from textinv_ray.service.store.store import Store


def write_manifest(folder: Path, side: int) -> Path:
    """One concept of two pictures of noise."""
    names = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        names.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(names[-1])
    path = folder / "manifest.parquet"
    rows = [{"concept_id": "noise", "images": names, "initializer_token": "cat"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def settings(model: Path, side: int, steps: int) -> list[str]:
    """Settings of the smallest job: one worker, pack size 1, two steps, one picture before and after, CLIP scores."""
    return [
        f"model.path={model}",
        f"data.resolution={side}",
        f"training.steps={steps}",
        "training.batch_size=1",
        f"review.resolution={side}",
        "review.num_inference_steps=2",
        "review.images_per_prompt=1",
        "review.sample_at=[0, 1]",
        "review.guidance_scale=5",
        "scoring.num_images=1",
        "stopping.rule=none",
        "pack.size=1",
        "service.workers=1",
        "tracking.enabled=false",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="sdxl", choices=list(random_models.SIZES))
    parser.add_argument("--side", type=int, default=512, help="of the images in pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    model, output = folder / options.model, folder / "out"
    start = time.monotonic()
    if not (model / "vae" / "diffusion_pytorch_model.safetensors").is_file():
        random_models.save(options.model, model)
    saved = time.monotonic() - start
    print(f"{options.model} in {model}: {saved:.0f} s", flush=True)
    manifest = write_manifest(folder, options.side)
    command = [sys.executable, "-m", "textinv_ray", "invert", str(manifest), "--output", str(output)]
    for setting in settings(model, options.side, options.steps):
        command += ["--set", setting]
    start = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"})
    with measure.PeakMemory(process.pid) as memory:
        code = process.wait()
    seconds = time.monotonic() - start
    if code != 0:
        raise SystemExit(f"the command ended with exit code {code}")
    (result,) = Store(str(output)).results()
    row = {
        "model": options.model,
        "side": options.side,
        "steps": result.steps,
        "seconds of the command": seconds,
        "of the steps": result.seconds,
        "of the review": result.review_seconds,
        "peak memory, MB": memory.bytes / measure.MEGABYTE,
    }
    print(f"on {measure.machine_line()}")
    print(measure.table([row]))
    measure.write_json(options.json, row)


if __name__ == "__main__":
    main()
