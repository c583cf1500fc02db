"""How fast the packed step is: samples per second for pack sizes 1, 2, 4, ... of the same model and batch size.

    python benchmarks/step.py [--model mini-sd] [--batch-size 4] [--max-pack 16] [--dtypes float32,bfloat16]
                              [--seconds 5] [--json PATH]

One process, no Ray. Ratios within one run are what counts: machines differ, and so do their moods.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from textinv_ray.concept import Concept
from textinv_ray.config import JobConfig
from textinv_ray.inversion.backbone import Backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.prompts import templates
from textinv_ray.service import models


def concept(number: int, resolution: int, batch_size: int) -> Concept:
    """A concept of five pictures of noise: speed doesn't depend on what they show."""
    images = np.random.default_rng(number).integers(0, 256, (5, 1, resolution, resolution, 3), dtype=np.uint8)
    name = f"concept-{number}"
    return Concept(
        concept_id=name,
        placeholder_token=f"<{name}>",
        initializer_token="person",
        learnable_property="object",
        num_vectors=1,
        steps=10**6,
        learning_rate=5e-3,
        batch_size=batch_size,
        seed=number,
        templates=templates("object"),
        captions=(),
        prompts=(),
        edit_prompts=(),
        tags={},
        images=images,
        image_uris=(),
        fingerprint=name,
        row_fingerprint=name,
        state_fingerprint=name,
    )


def samples_per_second(
    backbone: Backbone, config: JobConfig, size: int, batch_size: int, seconds: float
) -> float:
    """Of a pack of `size` concepts, after two steps to warm up."""
    pack = Pack(backbone, config, size)
    for number in range(size):
        task = ConceptTask(
            dataclasses.replace(concept(number, backbone.resolution, batch_size), steps=10_000),
            backbone,
            config,
        )
        pack.add(task)
    for _ in range(2):
        pack.step()
    synchronize()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        pack.step()
        steps += 1
    synchronize()
    return steps * size * batch_size / (time.perf_counter() - started)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-sd")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-pack", type=int, default=16)
    parser.add_argument("--dtypes", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config, lines = JobConfig(), []
    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{options.model} on {where}, batch size {options.batch_size}")
    print(f"{'dtype':10} {'pack':>5} {'samples/s':>10} {'to pack 1':>10}")
    for dtype in options.dtypes.split(","):
        backbone = Backbone.load(models.resolve(options.model), dtype=dtype)
        alone, size = 0.0, 1
        while size <= options.max_pack:
            speed = samples_per_second(backbone, config, size, options.batch_size, options.seconds)
            alone = alone or speed
            lines.append(
                {
                    "dtype": str(backbone.dtype).removeprefix("torch."),
                    "pack": size,
                    "samples_per_second": round(speed, 2),
                    "ratio": round(speed / alone, 3),
                }
            )
            print(f"{lines[-1]['dtype']:10} {size:5} {speed:10.1f} {speed / alone:9.2f}x", flush=True)
            size *= 2
    if options.json:
        options.json.write_text(
            json.dumps(
                {"device": where, "model": options.model, "batch_size": options.batch_size, "steps": lines},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
