"""What every trainer here shares: data, checkpoints, the averaged weights, progress lines and picture grids."""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.effects import EFFECT_EVERY, apply_effect, effect_of

BUILD = Path("build/mini")
"""Where data, checkpoints and sample grids go (git-ignored)."""
MODELS = Path(__file__).resolve().parent.parent / "textinv_ray" / "models"
T = TypeVar("T")


@dataclass(frozen=True)
class Preset:
    """Sizes and lengths of one way to train."""

    unet_channels: tuple[int, ...]
    unet_layers: int
    text_hidden: int
    text_layers: int
    vae_channels: tuple[int, ...]
    clip_hidden: int
    clip_layers: int
    vae_steps: int
    clip_steps: int
    text_steps: int
    unet_steps: int
    vae_batch: int
    clip_batch: int
    judge_steps: int
    unet_batch: int
    rate: float
    """Of the learning rates that are said elsewhere, which are those of the small batches."""
    show_every: int
    """Steps of the UNet between two sheets of pictures; the curve has five points in that time."""
    workers: int
    """Processes that make captions ahead of the UNet; half of them for mini-clip."""


CPU = Preset(
    (128, 192),
    1,
    256,
    3,
    (32, 64, 96),
    192,
    5,
    10000,
    600,
    2000,
    30000,
    8,
    128,
    460,
    32,
    rate=1,
    show_every=500,
    workers=0,
)
PRESETS = {
    "cpu": CPU,
    # The same shapes, so that it goes on from the same weights, and what it trains learns words as fast on a CPU.
    "gpu": replace(
        CPU, vae_steps=40000, clip_steps=6000, text_steps=10000, unet_steps=60000, vae_batch=128, clip_batch=384,
        judge_steps=6000, unet_batch=512, rate=2.5, show_every=10000, workers=8,
    ),
}  # fmt: skip


def default_preset() -> str:
    return "gpu" if torch.cuda.is_available() else "cpu"


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compiles() -> bool:
    """Whether trainers compile their models: on a GPU it saves half of a step; on CPU some gradients came out zero
    (torch 2.13)."""
    return torch.cuda.is_available()


def autocast() -> torch.autocast:
    """bf16 on both kinds of device: CPUs with matrix units gain several times over float32."""
    return torch.autocast(device().type, torch.bfloat16)


class Team:
    """The processes that train one model together, started by `torchrun`; without it, a team of one.

    On CPU one process per core beats one process with as many threads, most of all on a machine that does other work:
    they wait for each other once per step, not once per operation. Every batch and its random draws are made whole by
    each process, which then takes its share: how many there are changes nothing but rounding.
    """

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.size > 1:
            torch.distributed.init_process_group("gloo")
            # Threads of a group that is left to the end of the process can abort it.
            atexit.register(torch.distributed.destroy_process_group)

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, grids and weights."""
        return self.rank == 0

    def share(self, batch: Any) -> Any:
        """This process's part of an array or a tensor whose first dimension is the batch."""
        return batch[self.rank :: self.size]

    def agree(self, value: float) -> float:
        """What the leading process says: clocks differ."""
        said = torch.tensor(value, dtype=torch.float64)
        if self.size > 1:
            torch.distributed.broadcast(said, 0)
        return float(said)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        if self.size == 1:
            return
        for weight in parameters:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = (flat / self.size).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            # Into the tensor that is there: fused Adam on CPU takes it for granted that weight and gradient lie alike.
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


class Data:
    """Images as uint8 (N, 64, 64, 3) and their rows (what `training.build` wrote).

    With `effects` one image in EFFECT_EVERY is redrawn (black and white, line drawing, ...), so that the model meets
    more ways of drawing than the avatar styles themselves; the row then carries `effect`.
    """

    def __init__(self, folder: Path, effects: bool = True) -> None:
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.made = folder / f"{type(self).__name__.lower()}.npy"
        with open(folder / "rows.jsonl") as lines:
            self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if effects:
            for index in range(0, len(self.rows), EFFECT_EVERY):
                self.rows[index]["effect"] = effect_of(index)
        self.resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, indices: Iterable[int]) -> np.ndarray:
        """uint8 (n, 64, 64, 3), effects applied."""
        picked = []
        for index in indices:
            image = np.asarray(self.images[index])
            effect = self.rows[index].get("effect")
            picked.append(apply_effect(image, effect) if effect else image)
        return np.stack(picked)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The same as `to_tensor` makes of it; on a GPU all images are kept there from the first call on."""
        if device().type == "cpu":
            return to_tensor(self.pixels(indices))
        if self.resident is None:
            self.resident = self.everything()
        picked = self.resident[torch.as_tensor(np.asarray(indices), device=device())]
        return picked.permute(0, 3, 1, 2).float() / 127.5 - 1

    def everything(self) -> Tensor:
        """All pixels on the device: as `training.minutes draw` made them, if it did, made here otherwise."""
        if self.made.exists():
            made = np.load(self.made, mmap_mode="r")
            parts = [torch.from_numpy(made[i : i + 1000].copy()) for i in range(0, len(self), 1000)]
        else:
            parts = [
                torch.from_numpy(self.pixels(range(i, min(i + 1000, len(self)))))
                for i in range(0, len(self), 1000)
            ]
        return torch.cat([part.to(device()) for part in parts])


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (n, H, W, 3) -> float32 (n, 3, H, W) in [-1, 1], channels last."""
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.to(device(), memory_format=torch.channels_last)


def to_pixels(images: Tensor) -> np.ndarray:
    """float (n, 3, H, W) in [-1, 1] -> uint8 (n, H, W, 3)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def save_grid(path: Path, pixels: np.ndarray, columns: int, scale: int = 2) -> None:
    """Write uint8 (n, H, W, 3) as one PNG of `columns` columns, each image enlarged `scale` times."""
    count, height, width, _ = pixels.shape
    rows = math.ceil(count / columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize(
        (columns * width * scale, rows * height * scale), Image.Resampling.NEAREST
    ).save(path)


def save_half(module: Any, folder: Path) -> None:
    """Write a diffusers or transformers model in float16, to be loaded in float32 unless one asks otherwise.

    transformers would load it in the precision that its config names, which no plain pipeline expects.
    """
    dtype = module.dtype
    module.half().save_pretrained(folder)
    module.to(dtype)
    config = folder / "config.json"
    text = config.read_text().replace('"dtype": "float16"', '"dtype": "float32"')
    config.write_text(
        re.sub(r'\n *"_name_or_path": "[^"]*",', "", text)
    )  # a path of this machine is nobody's business


class Averaged:
    """Exponential moving average of a module's weights, the ones that are sampled from and shipped."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: weight.detach().clone().float() for name, weight in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = list(self.weights.values()), [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, weight in module.named_parameters():
            weight.copy_(self.weights[name])


class Checkpoint:
    """One trainer's state on disk: weights, averages and Adam's moments as safetensors, replaced atomically.

    Training that was interrupted goes on from it; with none, from the shipped weights if `initial` finds them.
    """

    def __init__(
        self, folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: Averaged
    ) -> None:
        self.path = folder / "checkpoint.safetensors"
        self.module, self.optimizer, self.average = module, optimizer, average
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = [weight for _, weight in module.named_parameters()]

    def save(self, step: int) -> None:
        tensors: dict[str, Tensor] = {}
        for name, weight in zip(self.names, self.parameters, strict=True):
            tensors[f"weight.{name}"] = weight.detach().contiguous()
            tensors[f"average.{name}"] = self.average.weights[name].contiguous()
            for key, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"adam.{key}.{name}"] = value.detach().contiguous().clone()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        save_file(tensors, temporary, {"step": str(step), "updates": str(self.average.updates)})
        temporary.replace(self.path)

    def load(self) -> int:
        """Restore the state and return its step; 0 when there is none."""
        if not self.path.exists():
            return 0
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(self.path)
        with torch.no_grad():
            for name, weight in zip(self.names, self.parameters, strict=True):
                weight.copy_(tensors[f"weight.{name}"])
                self.average.weights[name].copy_(tensors[f"average.{name}"])
                state = {
                    key.split(".")[1]: value
                    for key, value in tensors.items()
                    if key.startswith("adam.") and key.split(".", 2)[2] == name
                }
                if state:
                    self.optimizer.state[weight] = state
        self.average.updates = int(metadata["updates"])
        return int(metadata["step"])


class Progress:
    """Averages of the loss and the speed, printed now and then and kept as JSON lines for the model card."""

    def __init__(self, folder: Path, name: str, every: int = 100) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.name, self.every = folder / "log.jsonl", name, every
        self.losses: list[Tensor] = []
        self.since, self.samples = time.perf_counter(), 0
        self.waited: float | None = None

    def timed(self, steps: Iterable[T]) -> Iterator[T]:
        """The same steps; how much of the time the trainer waits for them stands in the lines as "waited"."""
        self.waited, asked = 0.0, time.perf_counter()
        for step in steps:
            self.waited += time.perf_counter() - asked
            yield step
            asked = time.perf_counter()

    def update(self, step: int, loss: Tensor, samples: int) -> None:
        self.losses.append(loss.detach())
        self.samples += samples
        if step % self.every == 0:
            seconds = time.perf_counter() - self.since
            line = {
                "step": step,
                "loss": round(float(torch.stack(self.losses).mean()), 5),
                "samples_per_second": round(self.samples / seconds, 1),
            }
            if self.waited is not None:
                line["waited"], self.waited = round(self.waited / seconds, 2), 0.0
            with open(self.log, "a") as log:
                log.write(json.dumps(line) + "\n")
            print(self.name, " ".join(f"{key} {value}" for key, value in line.items()), flush=True)
            self.losses, self.since, self.samples = [], time.perf_counter(), 0


def profiled(path: Path, skipped: int = 200) -> torch.profiler.profile:
    """A profiler of steps that writes to `path` what three of them spent their time on, after the `skipped` first."""

    def write(done: torch.profiler.profile) -> None:
        path.write_text(
            done.key_averages().table(sort_by=f"self_{device().type}_time_total", row_limit=50) + "\n"
        )

    schedule = torch.profiler.schedule(skip_first=skipped, wait=0, warmup=2, active=3, repeat=1)
    return torch.profiler.profile(schedule=schedule, on_trace_ready=write)


class Schedule:
    """How far a run is: of its steps or of its time, whichever is further."""

    def __init__(self, steps: int, hours: float, team: Team) -> None:
        self.steps, self.seconds, self.team, self.started = steps, hours * 3600, team, time.monotonic()

    def progress(self, step: int) -> float:
        """In [0, 1] once `step` steps are done, the same for the whole team."""
        elapsed = (time.monotonic() - self.started) / self.seconds
        return min(1.0, self.team.agree(max(step / self.steps, elapsed)))


def learning_rate(
    step: int, progress: float, peak: float, warmup: int = 300, cooldown: float = 0.25
) -> float:
    """Warm up, hold, then fall linearly to zero over the last `cooldown` part of the run; `progress` is in [0, 1]."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * min(1.0, max(0.0, 1 - progress) / cooldown)


def batches(count: int, size: int, seed: int, first_step: int) -> Iterator[np.ndarray]:
    """Index batches without end, a new permutation each epoch; the same ones again after a resume."""
    per_epoch = count // size
    step = first_step
    while True:
        order = np.random.default_rng((seed, step // per_epoch)).permutation(count)
        for index in range(step % per_epoch, per_epoch):
            yield order[index * size : (index + 1) * size]
            step += 1
