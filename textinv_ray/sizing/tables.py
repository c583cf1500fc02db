"""The tables that estimates go by: what models cost, what GPUs can do, and what was measured. Data files lie beside."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import Field, TypeAdapter

from textinv_ray.config.training import Strict
from textinv_ray.model_files.places import ModelFiles
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import nearest

_FOLDER = Path(__file__).parent
COSTS_FILE = _FOLDER / "costs.json"
"""What `benchmarks/costs.py` counts."""
SIDES = (512, 768, 1024)
"""Pixels of the pictures that it counts for."""
_T = TypeVar("_T")


class PictureCost(Strict):
    """Of one picture of some side: floating-point operations, and bytes in float16."""

    forward: float
    """Operations of the denoiser's forward pass."""
    both: float
    """Of its forward pass and the backward pass to what it is conditioned on."""
    encode: float
    """Of the VAE's encoder."""
    decode: float
    """Of the VAE's decoder."""
    kept: float
    """Bytes that the denoiser keeps of a sample for the backward pass."""
    checkpointed: float
    """The same with activation checkpointing."""


class EncoderCost(Strict):
    """Of a text encoder, for one prompt of full length."""

    name: str
    """As in files of words."""
    parameters: int
    """Their number."""
    forward: int
    """Operations of the forward pass."""
    both: int
    """Of the forward pass and the backward pass to the word."""
    kept: int
    """Bytes kept for the backward pass."""


class Costs(Strict):
    """A model's line of costs.json."""

    parameters: int
    """Of the denoiser."""
    vae_parameters: int
    """Of the VAE."""
    encoders: list[EncoderCost]
    """Its text encoders."""
    sides: dict[str, PictureCost]
    """By SIDES."""

    def of_side(self, side: int) -> PictureCost:
        """By a polynomial of second degree in the number of pixels: attention is quadratic, all else linear."""
        areas = [known * known for known in SIDES]

        def interpolate(value: Callable[[PictureCost], float]) -> float:
            total, area = 0.0, side * side
            for known, own in zip(SIDES, areas, strict=True):
                weight = 1.0
                for other in areas:
                    weight *= (area - other) / (own - other) if other != own else 1.0
                total += weight * value(self.sides[str(known)])
            return max(total, 0.0)

        return PictureCost(
            forward=interpolate(lambda cost: cost.forward),
            both=interpolate(lambda cost: cost.both),
            encode=interpolate(lambda cost: cost.encode),
            decode=interpolate(lambda cost: cost.decode),
            kept=interpolate(lambda cost: cost.kept),
            checkpointed=interpolate(lambda cost: cost.checkpointed),
        )


class Model(Strict):
    """A published model and those that cost the same."""

    name: str
    """Its line in costs.json."""
    family: str
    """`ModelFamily.name`."""
    side: int
    """Pixels of its pictures."""
    paths: list[str]
    """As in `model.path`."""
    layers: int | None = None
    """Of the denoiser; null: the text encoders tell it from the other models of its family."""


class Device(Strict):
    """A GPU, or the CPU cores that were measured."""

    name: str
    """What people call it."""
    memory: float | None = Field(gt=0)
    """In GB; null: not checked."""
    tflops: float = Field(gt=0)
    """Peak of dense matrix products in 16 bits, in TFLOP/s."""
    bandwidth: float = Field(gt=0)
    """Of its memory, in GB/s."""
    precision: Literal["bfloat16", "float16"] = "bfloat16"
    """float16: it has no bfloat16."""
    utilisation: float | None = Field(None, gt=0, le=1)
    """Share of the peak that was measured; null: `estimates.UTILISATION` is assumed."""
    source: str
    """Of the figures."""


class Measured(Strict):
    """A throughput that was measured."""

    model: str
    """Name of a Model, or of a bundled model."""
    device: str
    """Name in gpus.yaml."""
    side: int | None
    """Pixels of the pictures; null: the model's."""
    samples_per_second: float = Field(gt=0)
    """Training samples of one worker."""
    with_reviews: bool = False
    """Whether samples and scores are part of that time."""
    how: str
    """Where the figure comes from."""


@functools.cache
def costs() -> Mapping[str, Costs]:
    """Name -> line."""
    return TypeAdapter(dict[str, Costs]).validate_python(json.loads(COSTS_FILE.read_text(encoding="utf-8")))


@functools.cache
def models() -> Mapping[str, Model]:
    """Name -> model."""
    found = _read("models.yaml")
    assert isinstance(found, dict)
    return {name: Model(name=name, **line) for name, line in found.items()}


@functools.cache
def devices() -> Mapping[str, Device]:
    """Name as in `--gpu` -> device."""
    found = _read("gpus.yaml")
    assert isinstance(found, dict)
    return {name: Device(**line) for name, line in found.items()}


@functools.cache
def measured() -> tuple[Measured, ...]:
    """All of them."""
    return tuple(TypeAdapter(list[Measured]).validate_python(_read("measured.yaml")))


def device(name: str) -> Device:
    """A device by its name. Raises UserError for an unknown one."""
    if name.lower() not in devices():
        known = ", ".join(devices())
        raise UserError(f"--gpu: no {name!r}{nearest(name.lower(), list(devices()))} (known: {known})")
    return devices()[name.lower()]


def model_at(path: str) -> Model | None:
    """The published model at a `model.path`; None for another."""
    return next((model for model in models().values() if path in model.paths), None)


def model_like(files: ModelFiles) -> Model:
    """What a model that isn't in the table costs: as the one of its family that has its text encoders and layers.

    Where there is none, as the first of the family. The side is its own.
    """
    names, layers = set(files.encoder_names), files.denoiser.get("num_layers")

    def differs(model: Model) -> tuple[bool, bool]:
        encoders = {part.name for part in costs()[model.name].encoders}
        return not names <= encoders, model.layers not in (None, layers)

    family = [model for model in models().values() if model.family == files.family.name]
    return min(family, key=differs).model_copy(update={"side": files.resolution})


def _read(name: str) -> object:
    return yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))
