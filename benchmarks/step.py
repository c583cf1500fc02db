"""How fast the packed step is: pack sizes 1, 2, 4, ... by precision, with and without torch.compile,
channels-last weights and activation checkpointing.

    python benchmarks/step.py [--model mini-sd|sd15|sdxl|FOLDER] [--batch-size 4] [--min-pack 1] [--max-pack 16]
                              [--dtypes float32,tf32,bfloat16] [--compile off,on] [--channels-last off,on]
                              [--checkpointing off,on] [--repeats 3] [--limit SECONDS] [--json PATH]

One process, no Ray, no network. All variants are held in memory side by side and take turns, so that a machine's
moods meet all of them; a figure is the median of its turns. Ratios within one run are what counts. "Share of peak" is
of the fastest matrix product that this run found, "of data sheet" of the GPU's 16-bit peak that `textinv plan` knows.
--limit: after so many seconds no variant is begun, and each takes one more turn at most.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, random_models
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.templates import templates
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.precision import DTYPES
from textinv_ray.inversion.pack import Pack, is_out_of_memory
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import compile_step
from textinv_ray.model_files.places import BUNDLED
from textinv_ray.sizing import tables

WARM_UP_STEPS = 3
TF32 = "tf32"
"""Float32, but for matrix products on a GPU; its convolutions are in TensorFloat-32 by torch's default."""


@dataclass
class Case:
    """One line of the table."""

    dtype: str
    compiled: CompiledDenoiser | None
    channels_last: bool
    pack: Pack
    batch_size: int
    memory_mb: float = 0.0
    speeds: list[float] = field(default_factory=list)

    @property
    def samples_per_second(self) -> float:
        return statistics.median(self.speeds)

    @property
    def is_finite(self) -> bool:
        """Whether the last losses are numbers: matrix products of others may be faster."""
        losses = [task.loss_history[-1:] for task in self.pack.tasks]
        return bool(torch.cat(losses).isfinite().all())

    def take_turn(self, seconds: float) -> None:
        """Steps for about so long, and notes the samples per second."""
        use(self.dtype)
        self.pack.backbone.compiled = self.compiled
        start, steps = measure.now(), 0
        while steps < 2 or time.perf_counter() - start < seconds:
            self.pack.step()
            steps += 1
        self.speeds.append(steps * self.pack.size * self.batch_size / (measure.now() - start))


@functools.cache
def noise_images(resolution: int) -> np.ndarray:
    """Five pictures of noise, the same for all concepts: speed doesn't depend on what they show."""
    return np.random.default_rng(0).integers(0, 256, (5, 1, resolution, resolution, 3), dtype=np.uint8)


def concept(number: int, resolution: int, batch_size: int) -> Concept:
    """A concept of five pictures."""
    name = f"concept-{number}"
    return Concept(
        concept_id=name,
        placeholder_token=f"<{name}>",
        initializer_token="person",
        learnable_property="object",
        num_vectors=1,
        steps=100_000,
        learning_rate=5e-3,
        batch_size=batch_size,
        seed=number,
        templates=templates("object"),
        captions=(),
        prompts=(),
        edit_prompts=(),
        tags={},
        images=noise_images(resolution),
        image_uris=(),
        fingerprint=name,
        row_fingerprint=name,
        state_fingerprint=name,
    )


def use(dtype: str) -> None:
    """Lets a GPU's matrix products of float32 have the precision of TensorFloat-32, or not: torch's default."""
    torch.set_float32_matmul_precision("high" if dtype == TF32 else "highest")


def load(model: str, dtype: str) -> Backbone:
    """A model of random weights by its size's name, a bundled one, or one from a folder."""
    use(dtype)
    dtype = "float32" if dtype == TF32 else dtype
    if model in random_models.SIZES:
        return random_models.load(model, dtype)
    return load_backbone(str(BUNDLED / model) if (BUNDLED / model).is_dir() else model, dtype=dtype)


def filled(backbone: Backbone, config: JobConfig, size: int, batch_size: int) -> Pack:
    """A pack of `size` concepts, which have the same images, encoded once, and draws of their own."""
    pack = Pack(backbone, config, size)
    first = ConceptTask(concept(0, backbone.resolution, batch_size), backbone, config)
    for number in range(size):
        task = copy.copy(first)
        task.concept = concept(number, backbone.resolution, batch_size)
        task.tensors = dict(first.tensors)  # the pack copies what is in it
        pack.add(task)
    return pack


def data_sheet_flops() -> float:
    """The peak in FLOP/s of this machine's GPU in 16 bits, by the table of `textinv plan`; NaN if it isn't there."""
    name = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    known = [device for key, device in tables.devices().items() if key in name.replace("-", " ").split()]
    return known[0].tflops * 1e12 if len(known) == 1 else math.nan


def flop_per_sample(backbone: Backbone, config: JobConfig) -> float:
    """FLOP of a step's matrix products and convolutions, forward and backward, for one sample."""
    pack = filled(backbone, config, 1, 1)
    # Fused attention kernels aren't counted on all devices; as plain products they are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pack.step()
    return float(counter.get_total_flops())


def warm_up(case: Case) -> None:
    """First steps, which compile what is to be compiled; notes the memory that they took."""
    backbone = case.pack.backbone
    if backbone.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(case.pack, WARM_UP_STEPS)
        models = backbone.models
        weights = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
        case.memory_mb = (torch.cuda.max_memory_allocated() - before + weights) / measure.MEGABYTE
    else:
        with measure.PeakMemory(every_s=0.02) as memory:
            run(case.pack, WARM_UP_STEPS)
        case.memory_mb = memory.bytes / measure.MEGABYTE


def run(pack: Pack, steps: int) -> None:
    for _ in range(steps):
        pack.step()
    measure.synchronize()


def cases_of(
    backbone: Backbone,
    config: JobConfig,
    dtype: str,
    packs: tuple[int, int],
    batch_size: int,
    *,
    compiled: bool,
    channels_last: bool,
    until: float,
) -> list[Case]:
    """Warmed-up packs, as far as they fit into memory and begin before `until`, in seconds of the performance counter.

    packs: the smallest and the largest number of concepts; each is twice as large as the one before.
    """
    cases, size = [], packs[0]
    while size <= packs[1] and time.perf_counter() < until:
        try:
            pack, backbone.compiled = filled(backbone, config, size, batch_size), None
            if compiled and not compile_step(backbone, pack.tasks[0], size, config):
                break
            case = Case(dtype, backbone.compiled, channels_last, pack, batch_size)
            warm_up(case)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"{dtype}: a pack of {size} doesn't fit into memory")
            break
        cases.append(case)
        size *= 2
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="mini-sd", help="bundled, random weights (sd15, sdxl), or a folder"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--min-pack", type=int, default=1)
    parser.add_argument("--max-pack", type=int, default=16)
    parser.add_argument(
        "--dtypes", default="auto", help="auto, float32, tf32, float16, bfloat16; several with commas"
    )
    parser.add_argument("--compile", default="off", help="off, on, or off,on")
    parser.add_argument("--channels-last", default="off", help="weights of the UNet: off, on, or off,on")
    parser.add_argument("--checkpointing", default="off", help="of activations: off, on, or off,on")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds, about")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    until = time.perf_counter() + options.limit

    # Random weights may overflow half precision: no concept may leave for that.
    training = {"max_nonfinite_steps": 10**9, "batch_size": options.batch_size}
    config = JobConfig.from_dict({"training": training})
    torch._dynamo.config.recompile_limit = 100  # beyond it nothing is compiled, without a word
    print(f"{options.model}, batch size {options.batch_size}, on {measure.machine_line()}")
    flop, cases = 0.0, []
    variants = (options.dtypes, options.channels_last, options.checkpointing, options.compile)
    for dtype, channels_last, checkpointing, compiled in product(*(names.split(",") for names in variants)):
        if time.perf_counter() > until:
            break
        backbone = load(options.model, dtype)
        flop = flop or flop_per_sample(backbone, config)
        if channels_last == "on":
            backbone.denoiser.to(memory_format=torch.channels_last)
        if checkpointing == "on":
            backbone.checkpoint_activations()
        cases += cases_of(
            backbone,
            config,
            dtype if dtype == TF32 else str(backbone.dtype).removeprefix("torch."),
            (options.min_pack, options.max_pack),
            options.batch_size,
            compiled=compiled == "on",
            channels_last=channels_last == "on",
            until=until,
        )
    if not cases:
        raise SystemExit("nothing fits into memory")

    peaks = dict.fromkeys((case.dtype for case in cases), 0.0)
    for turn in range(options.repeats):
        if turn and time.perf_counter() > until:
            break
        for dtype in peaks:
            use(dtype)
            peaks[dtype] = max(peaks[dtype], measure.matmul_flops(DTYPES[dtype.replace(TF32, "float32")]))
        for case in cases:
            case.take_turn(options.seconds)
    rows: list[dict[str, Any]] = [
        {
            "dtype": case.dtype,
            "compile": "on" if case.compiled else "off",
            "channels last": "on" if case.channels_last else "off",
            "checkpointing": "on" if case.pack.backbone.checkpoints_activations else "off",
            "pack": case.pack.size,
            "samples/s": case.samples_per_second,
            "to the first": case.samples_per_second / cases[0].samples_per_second,
            "share of peak": case.samples_per_second * flop / peaks[case.dtype],
            "of data sheet": case.samples_per_second * flop / data_sheet_flops(),
            "memory, MB": case.memory_mb,
            "finite": "yes" if case.is_finite else "no",
        }
        for case in cases
    ]
    print(measure.table(rows))
    print(f"{flop / 1e9:.4g} GFLOP a sample, forward and backward; matrix products reach", end=" ")
    print(", ".join(f"{peak / 1e12:.3g} TFLOP/s in {dtype}" for dtype, peak in peaks.items()))
    measure.write_json(
        options.json,
        {
            "model": options.model,
            "batch_size": options.batch_size,
            "flop_per_sample": flop,
            "matmul_flops": peaks,
            "steps": rows,
        },
    )


if __name__ == "__main__":
    main()
