"""What a job will take on a kind of GPU: pack size, time and cost, by arithmetic from tables.

    estimate = Estimate.of(Work.of(learnings, config), config, "h100")

Time is operations divided by the device's peak times a share of it that is assumed (UTILISATION), but not less than its
memory takes to move weights and activations. A measured throughput of the same model and device takes precedence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from textinv_ray.config.job import JobConfig
from textinv_ray.config.model_families import family_named
from textinv_ray.model_files import places
from textinv_ray.sizing import tables
from textinv_ray.sizing.tables import Costs, Device, EncoderCost, Measured, Model, PictureCost
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact

UTILISATION = 0.3
"""Share of the data sheet's peak that a step reaches. Packs of 16 reached 0.25 (SD 1.5) and 0.31 (SDXL) on an H200."""
RESERVE_GB = 2.0
"""Memory left for CUDA, work space and fragments, as in benchmarks/memory.py."""
STARTING_S = 60.0
"""From the command to the first step, once machines are there: Ray, imports, loading of models."""
SHARE_OF_STEPS = {"none": 1.0, "clip": 0.40, "dvar": 0.07}
"""By `stopping.rule`: where learning ends on average, between the first step where the rule can end it (0) and
`training.steps` (1). Measured on the bundled model (docs/benchmarks.md): 269 steps, between 180 and 400
(today's preset: 198, between 120 and 300); 74, between 50 and 400."""
_GB = 1e9


@dataclass(frozen=True)
class Learning:
    """What one concept takes."""

    images: int
    """Training images."""
    batch_size: int
    """Samples per step."""
    steps: int
    """If no rule ends learning early."""
    min_steps: int | None = None
    """In place of `stopping.min_steps`: of a start from a file."""
    wave: int = 0
    """1: it begins when all of wave 0 are done."""


@dataclass(frozen=True)
class Work:
    """What a manifest asks for."""

    concepts: int
    """Rows."""
    images: int
    """Training images of all."""
    samples: float
    """Training samples expected, steps times batch size, of all concepts."""
    most_samples: int
    """If no rule ends learning early."""
    longest: float
    """Training samples expected of the concept that has most; with waves, of those of both, one after the other."""
    evaluations: float
    """Of `stopping.rule: clip`, expected of all concepts."""
    batch_size: int
    """The largest."""

    @classmethod
    def of(cls, learnings: Iterable[Learning], config: JobConfig) -> Work:
        """Of these concepts."""
        concepts = images = most = largest = 0
        samples = evaluations = 0.0
        longest = [0.0, 0.0]
        for one in learnings:
            expected = expected_steps(one.steps, config, one.min_steps)
            concepts += 1
            images += one.images
            samples += expected * one.batch_size
            most += one.steps * one.batch_size
            longest[one.wave] = max(longest[one.wave], expected * one.batch_size)
            largest = max(largest, one.batch_size)
            evaluations += _evaluations(expected, config, one.min_steps)
        return cls(concepts, images, samples, most, sum(longest), evaluations, largest)

    @classmethod
    def of_equal(cls, concepts: int, images: int, config: JobConfig) -> Work:
        """Of so many concepts of so many images each, with the configuration's steps and batch size."""
        training = config.training
        return cls.of((Learning(images, training.batch_size, training.steps),) * concepts, config)


def expected_steps(steps: int, config: JobConfig, min_steps: int | None = None) -> float:
    """Optimizer steps that a concept of at most `steps` takes on average, by the stopping rule.

    min_steps: see Learning.
    """
    rule, share = config.stopping, SHARE_OF_STEPS[config.stopping.rule]
    last_vector = max(config.training.vectors_added_at, default=0)
    first = max(rule.min_steps if min_steps is None else min_steps, last_vector)
    if rule.rule == "clip":
        first = math.ceil(first / rule.clip.every) * rule.clip.every + rule.clip.patience * rule.clip.every
    if rule.rule == "dvar":
        first = max(first, rule.dvar.every * (rule.dvar.window - 1))
    return first + share * (steps - first) if first < steps else steps


def _evaluations(steps: float, config: JobConfig, min_steps: int | None) -> float:
    rule = config.stopping
    first = rule.min_steps if min_steps is None else min_steps
    if rule.rule != "clip" or not steps or steps < first:
        return 0.0
    return 1 + (steps - first) / rule.clip.every


@dataclass(frozen=True)
class Estimate:
    """A job on one kind of device. Hours are those of one device."""

    work: Work
    device: Device
    pack: int
    """Concepts that share a pass."""
    checkpointed: bool
    """Whether activations must be computed again in the backward pass."""
    memory_gb: float | None
    """Of a step of the pack, with the reserve; None: not known."""
    samples_per_second: float
    """Training samples of one device."""
    training_hours: float
    """Of all steps."""
    review_hours: float
    """Of pictures, scores and the images' latents."""
    source: str
    """Where the throughput comes from: measured or computed, and how."""
    longest_hours: float
    """Of the concept that takes longest, alone on a device."""
    notes: tuple[str, ...] = field(default=())
    """What else to know, a line each."""

    @property
    def hours(self) -> float:
        """Of one device for everything, its start not counted."""
        return self.training_hours + self.review_hours

    @property
    def concepts_per_hour(self) -> float:
        """Of one device."""
        return self.work.concepts / self.hours if self.hours else math.inf

    def wall_hours(self, devices: int) -> float:
        """From the command to the end, with so many devices."""
        used = min(devices, self.work.concepts)
        return STARTING_S / 3600 + max(self.hours / used, self.longest_hours)

    def gpu_hours(self, devices: int) -> float:
        """What is paid for: all devices until the end."""
        return min(devices, self.work.concepts) * self.wall_hours(devices)

    @classmethod
    def of(cls, work: Work, config: JobConfig, device_name: str) -> Estimate:
        """By the costs of `config.model`, which is found by its path, or by what it is like.

        Raises UserError for an unknown device, a model that can't be found, and where not even one concept fits.
        """
        device = tables.device(device_name)
        if places.is_bundled(config.model.path):
            return cls._of_bundled(work, config, device_name, device)
        path = config.model.path
        model = tables.model_at(path) or tables.model_like(places.open_model(config.model))
        family = family_named(model.family)
        family.check(config)
        costs = tables.costs()[model.name]
        side = config.data.resolution or model.side
        cost, picture = costs.of_side(side), costs.of_side(config.review.resolution or model.side)
        learning = _learning(costs, config)
        pack, checkpointed, memory = _pack(work, config, costs, cost, device, device_name)
        operations = cost.both + (cost.forward if checkpointed else 0) + sum(part.both for part in learning)
        found = _measured(model.name, device_name, side)
        if found:
            per_second, source = found.samples_per_second, found.how
            rate = per_second * operations
        else:
            share = device.utilisation or UTILISATION
            rate = share * device.tflops * 1e12
            moving = _moving_s(costs, cost, device, pack * work.batch_size, checkpointed)
            per_second = 1 / max(operations / rate, moving)
            source = (
                f"computed, not measured: {operations / 1e12:.3g} TFLOP a sample at {side} px, "
                f"{share:.0%} of {device.tflops:g} TFLOP/s assumed"
            )
        reviewing_s = _reviewing(work, config, model, cost, picture) / rate
        notes = []
        if device.precision == "float16" and family.cuda_dtype == "bfloat16":
            notes.append(f"{device_name} has no bfloat16, in which {model.family} runs: expect less")
        if isinstance(config.pack.size, int) and pack < min(config.pack.size, work.concepts):
            notes.append(f"pack.size is {config.pack.size}, but no more than {pack} fit")
        if config.model.dtype == "float32":
            notes.append(
                "model.dtype is float32: expect several times less, since these figures are of 16 bits"
            )
        if path not in model.paths:
            notes.append(f"{redact(path)} isn't in the table: its costs are taken from {model.paths[0]}")
        return cls(
            work=work,
            device=device,
            pack=pack,
            checkpointed=checkpointed,
            memory_gb=memory,
            samples_per_second=per_second,
            training_hours=work.samples / per_second / 3600,
            review_hours=reviewing_s / 3600,
            source=source,
            longest_hours=(work.longest / per_second + reviewing_s / work.concepts) / 3600,
            notes=tuple(notes),
        )

    @classmethod
    def _of_bundled(cls, work: Work, config: JobConfig, device_name: str, device: Device) -> Estimate:
        """Of a model that ships with this package: for CPUs only, by what was measured of one of them."""
        found = next(
            (line for line in tables.measured() if line.device == device_name and line.with_reviews), None
        )
        if found is None:
            raise UserError(
                f"--gpu {device_name}: {config.model.path} is a bundled model, for CPUs: --gpu cpu, or another --config"
            )
        return cls(
            work=work,
            device=device,
            pack=min(config.pack.max_size if config.pack.size == "auto" else config.pack.size, work.concepts),
            checkpointed=False,
            memory_gb=None,
            samples_per_second=found.samples_per_second,
            training_hours=work.samples / found.samples_per_second / 3600,
            review_hours=0.0,
            source=found.how,
            longest_hours=work.longest / found.samples_per_second / 3600,
        )


def _learning(costs: Costs, config: JobConfig) -> list[EncoderCost]:
    """The text encoders that a backward pass goes through."""
    wanted = config.training.encoders
    return [part for part in costs.encoders if wanted is None or part.name in wanted]


def _measured(model: str, device: str, side: int) -> Measured | None:
    lines = (line for line in tables.measured() if line.model == model and line.device == device)
    return next((line for line in lines if line.side in (None, side) and not line.with_reviews), None)


def _weights_gb(costs: Costs, config: JobConfig, *, vae: bool) -> float:
    """Of all networks, or without the VAE."""
    numbers = costs.parameters + sum(part.parameters for part in costs.encoders)
    numbers += costs.vae_parameters if vae else 0
    return numbers * _bytes_of_a_number(config) / _GB


def _bytes_of_a_number(config: JobConfig) -> int:
    return 4 if config.model.dtype == "float32" else 2


def _pack(
    work: Work, config: JobConfig, costs: Costs, cost: PictureCost, device: Device, device_name: str
) -> tuple[int, bool, float]:
    """(concepts that share a pass, whether activations are checkpointed, GB needed). As a worker finds out by trying.

    Raises UserError where one concept doesn't fit even with checkpointed activations and the VAE on the host.
    """
    wanted = config.pack.max_size if config.pack.size == "auto" else config.pack.size
    wanted = min(wanted, work.concepts)
    encoders = sum(part.kept for part in _learning(costs, config))
    scale = _bytes_of_a_number(config) / 2
    for checkpointed in (False, True):
        weights = RESERVE_GB + _weights_gb(costs, config, vae=not checkpointed)
        activations = (cost.checkpointed if checkpointed else cost.kept) + encoders
        concept = work.batch_size * scale * activations / _GB
        if device.memory is None:
            return wanted, False, weights + wanted * concept
        fitting = math.floor((device.memory - weights) / concept)
        if fitting >= 1:
            pack = min(fitting, wanted)
            if config.pack.size == "auto":
                pack = 2 ** math.floor(math.log2(pack))  # `auto` tries powers of two
            return pack, checkpointed, weights + pack * concept
    needed, memory = weights + concept, device.memory or math.inf
    if weights > memory:
        advice = "its weights alone are too many: take a larger GPU"
    else:
        smaller = [
            f"training.batch_size below {work.batch_size}" if work.batch_size > 1 else "",
            "a smaller data.resolution",
        ]
        advice = "take a larger GPU, or set " + " or ".join(filter(None, smaller))
    raise UserError(
        f"{config.model.path} needs {needed:.1f} GB for one concept with checkpointed activations, "
        f"{device_name} has {memory:g}: {advice}"
    )


def _moving_s(costs: Costs, cost: PictureCost, device: Device, samples: int, checkpointed: bool) -> float:
    """Seconds a sample that the device's memory takes: weights once in each pass, activations written and read."""
    weights = 2 * (costs.parameters + sum(part.parameters for part in costs.encoders))
    passes = 3 if checkpointed else 2
    return (passes * weights / samples + 2 * cost.kept) / (device.bandwidth * _GB)


def _reviewing(work: Work, config: JobConfig, model: Model, cost: PictureCost, picture: PictureCost) -> float:
    """Operations of what reviews, scores and evaluations draw, and of the training images' latents.

    `cost`: of training pictures; `picture`: of drawn ones. The initializers' pictures are counted for each concept.
    """
    review, scoring, clip = config.review, config.scoring, config.stopping.clip
    looks, scored = len({0.0, *review.sample_at, 1.0}), len({0.0, *scoring.evaluate_at, 1.0})
    samples = looks * len(review.prompts.object) * review.images_per_prompt
    scores = scored * (1 + len(scoring.edit_prompts.object)) * scoring.num_images
    drawn = work.concepts * (samples + scores)
    evaluated = work.evaluations * clip.num_images
    steps: float = drawn * review.num_inference_steps
    steps += evaluated * (clip.num_inference_steps or review.num_inference_steps)
    is_guided = review.guidance_scale > 1 and family_named(model.family).negative_prompts
    encoded = work.images * (2 if 0 < config.data.flip_probability < 1 else 1)
    return (
        steps * (2 if is_guided else 1) * picture.forward
        + (drawn + evaluated) * picture.decode
        + encoded * cost.encode
    )
