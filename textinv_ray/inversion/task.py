"""One concept's optimisation: what is drawn at each step, and the state that is saved and resumed."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig, TrainingConfig
from textinv_ray.config.training import StoppingConfig
from textinv_ray.inversion import initialization, penalties, stopping, words
from textinv_ray.inversion.backbone import Backbone
from textinv_ray.inversion.draws import Draws

STATE_FORMAT = "textinv_ray.concept_task.4"
INITIAL_LOSS_SCALE = 2.0**16


class ConceptTask:
    """One concept being learned. A `Pack` runs its steps; alone it is only state."""

    def __init__(self, concept: Concept, backbone: Backbone, config: JobConfig) -> None:
        """Encodes the images once, with the VAE, and tokenises all prompts.

        Raises ValueError for an initializer without a token and for a prompt that is too long.
        """
        self.step = 0
        self.failed: str | None = None
        """Why the concept can't be learned, once that is known."""
        self.stopped: str | None = None
        """The stopping rule that ended learning before all steps were taken."""
        self._looked_at = -1
        self._stopping = config.stopping
        self._look_kind = stopping.kind(concept, config)
        self._flip_probability = config.data.flip_probability
        self._timesteps = int(backbone.scheduler.config.num_train_timesteps)
        self._generator = torch.Generator()
        latents = _cached_latents(concept.images, backbone, flips=self._flip_probability > 0)
        if concept.init_from == "auto":
            chosen = initialization.choose_initializer(backbone, concept, latents["latent_means"])
            concept = dataclasses.replace(concept, initializer_token=chosen)
        self.concept = concept
        """What is learned; with the initializer_token that "auto" chose."""
        self.tensors = {
            **_initial_state(concept, backbone, config.stopping),
            **latents,
            "prompt_ids": _prompt_ids(concept, backbone),
        }
        """The state (see `state_dict`) and the cached inputs. In a pack, views of the pack's tensors."""
        if config.stopping.rule == "dvar":
            self.tensors |= stopping.fixed_batch(
                # A key for its own: no step has one like it.
                self._draw(
                    np.random.SeedSequence(concept.seed, spawn_key=(1,)), config.stopping.dvar.batch_size
                ),
                latents["latent_means"],
                latents["latent_stds"],
                self.tensors["prompt_ids"],
                stages=1 + len(concept.vectors_added_at),
                num_timesteps=self._timesteps,
            )

    @property
    def steps(self) -> int:
        """Optimizer steps in all, if no stopping rule ends learning before."""
        return self.concept.steps

    @property
    def done(self) -> bool:
        """Whether all steps were taken, or a stopping rule ended learning."""
        return self.step >= self.concept.steps or self.stopped is not None

    @property
    def look_due(self) -> bool:
        """Whether the stopping rule has to look at the word before the next step, or after the last."""
        if self.stopped or self._looked_at == self.step:
            return False
        return stopping.is_due(self.step, self.steps, self._stopping)

    def record(self, value: float | None = None) -> None:
        """Notes that the look of this step was taken. `value`: what it gave, if it isn't in `tensors` yet."""
        if value is not None:
            self.tensors["looks"][stopping.count(self.step, self._stopping) - 1] = value
            if self.best_step == self.step:
                self.tensors["best"].copy_(self.tensors["vectors"])
        self._looked_at = self.step

    @property
    def best_step(self) -> int | None:
        """With `rule: clip`, the step of the best look so far, if there was one. Waits for the device."""
        looks = self.tensors["looks"][: stopping.count(self.step, self._stopping)]
        return stopping.best_step(looks.cpu().numpy(), self.concept, self._stopping)

    def apply_stopping(self) -> None:
        """Ends learning if the stopping rule says so after the look of this step. Waits for the device."""
        looks = self.tensors["looks"][: stopping.count(self.step, self._stopping)]
        if int(self.tensors["failed_at"]) < 0:
            self._apply_stopping(looks, self.step)

    def _apply_stopping(self, looks: Tensor, step: int) -> None:
        """Raises ValueError when learning would have ended before `step`."""
        end = stopping.ends_at(looks.cpu().double().numpy(), self.concept, self._stopping)
        if end is not None and end < step:
            raise ValueError(f"the state is at step {step}, where learning ends at step {end}")
        self.stopped = self._stopping.rule if end == step < self.steps else None

    @property
    def vectors(self) -> Tensor:
        """The word as it is now, or when learning and looking are over, what the best look of `rule: clip` saw.

        float32 (V, D) on the CPU, a copy. V grows at `vectors_added_at`.
        """
        chosen = self.done and not self.look_due and self.best_step is not None
        return self._word(self.tensors["best" if chosen else "vectors"], self.stage)

    @property
    def initial_vectors(self) -> Tensor:
        """The word as it was before the first step: float32 (V, D) on the CPU, a copy."""
        return self._word(self.tensors["initial"], stage=0)

    @property
    def start(self) -> Tensor | None:
        """What learning is compared with: none for a word or phrase, which stands in prompts as text."""
        return None if self.concept.initializer_token else self.initial_vectors

    def _word(self, rows: Tensor, stage: int) -> Tensor:
        count = self.concept.num_vectors + stage
        return rows[:count].detach().to("cpu", torch.float32, copy=True)

    @property
    def stage(self) -> int:
        """How many vectors were added so far."""
        return sum(added_at <= self.step for added_at in self.concept.vectors_added_at)

    @property
    def loss_history(self) -> Tensor:
        """The loss of each step so far: float32 (step,) on the CPU, a copy."""
        return self.tensors["losses"][: self.step].to("cpu", torch.float32, copy=True)

    def draw(self) -> Draws:
        """The choices of the current step. They depend on the concept's seed and the step and nothing else.

        Every step has a generator of its own, so there is none to save, and no other concept can shift it.
        """
        return self._draw(np.random.SeedSequence([self.concept.seed, self.step]), self.concept.batch_size)

    def _draw(self, seeds: np.random.SeedSequence, size: int) -> Draws:
        images, crops = self.concept.images.shape[:2]
        # Mixed by NumPy's SeedSequence, whose result is the same everywhere and in all versions.
        mixed = seeds.generate_state(1, np.uint64)
        generator = self._generator.manual_seed(int(mixed[0] >> np.uint64(1)))
        uniform = torch.rand((5, size), generator=generator, dtype=torch.float64)
        shape = (2, size, *self.tensors["latent_means"].shape[1:])
        noise = torch.randn(shape, generator=generator)

        image = (uniform[0] * images).long()
        latents = image * crops + (uniform[1] * crops).long()
        if self._flip_probability > 0:
            latents = latents * 2 + (uniform[2] < self._flip_probability).long()
        templates, captions = len(self.concept.templates), len(self.concept.captions)
        prompts = torch.where(image < captions, templates + image, (uniform[3] * templates).long())
        # Blocks of prompts by stage, and within a stage by the word beside the learned one: none, or an image's.
        companions = 1 + _image_words(self.concept)
        block = torch.full_like(prompts, self.stage * companions)
        if companions > 1:
            beside = torch.rand(size, generator=generator) < self.concept.per_image_probability
            block = torch.where(beside, block + 1 + image, block)
        prompts += block * (templates + captions)
        return Draws(latents, prompts, (uniform[4] * self._timesteps).long(), noise)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a later run needs to go on, as copies on the CPU: vectors, Adam's moments and counters."""
        state = {name: self.tensors[name].to("cpu", copy=True) for name in _STATE}
        state["losses"] = state["losses"][: self.step].clone()
        state["looks"] = state["looks"][: stopping.count(self.step, self._stopping)].clone()
        return {**state, "step": torch.tensor([self.step])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state. Not while in a pack. Raises ValueError when it doesn't fit this concept."""
        if set(state) != {*_STATE, "step"}:
            raise ValueError(f"the state has the wrong parts: {sorted(state)}")
        own = self.tensors
        for name in _STATE:
            fits = state[name].dim() == 1 if name in _GROWING else state[name].shape == own[name].shape
            if state[name].dtype != own[name].dtype or not fits:
                raise ValueError(
                    f"the state's {name} are {state[name].dtype} {tuple(state[name].shape)}, "
                    f"not {own[name].dtype} {tuple(own[name].shape)}"
                )
        step = int(state["step"]) if state["step"].numel() == 1 else -1
        losses, looks = len(state["losses"]), state["looks"]
        if not 0 <= step <= self.steps or losses != step:
            raise ValueError(f"the state is at step {step} of {self.steps} with {losses} losses")
        if len(looks) != stopping.count(step, self._stopping):
            raise ValueError(f"the state is at step {step} with {len(looks)} looks of the stopping rule")
        if not all(
            torch.isfinite(state[name]).all() for name in ("vectors", "exp_avg", "exp_avg_sq", "best")
        ):
            raise ValueError("the state has values that are not finite")
        if float(state["loss_scale"]) == 1:
            # From a run in full precision: half precision must begin with a scale of its own.
            state = {**state, "loss_scale": own["loss_scale"]}
        self._apply_stopping(looks, step)
        for name in _STATE:
            own[name][: len(state[name])] = state[name].to(own[name].device)
        self.step = step
        self._looked_at = step if len(looks) and looks[-1].isfinite() else -1

    def to_bytes(self) -> bytes:
        """The state as one safetensors file of kilobytes."""
        # One entry, because several are written in random order and equal states should be equal files.
        return safetensors.torch.save(self.state_dict(), {"origin": json.dumps(self._origin())})

    def _origin(self) -> dict[str, str]:
        return {
            "format": STATE_FORMAT,
            "concept_id": self.concept.concept_id,
            "state_fingerprint": self.concept.state_fingerprint,
            "look_kind": self._look_kind,
        }

    def restore(self, data: bytes) -> None:
        """Goes on from `to_bytes`. Not while in a pack.

        Raises ValueError, and changes nothing, when the file is corrupt, is another concept's, or comes from
        a configuration in which the steps so far would have been different, or more than there are in this one.
        """
        try:
            state = safetensors.torch.load(data)
            length = int.from_bytes(data[:8], "little")
            origin = dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["origin"]))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a state file: {error}") from error
        if not self._look_kind:  # what others looked at makes no difference
            origin["look_kind"] = ""
            state |= {name: self.tensors[name] for name in ("looks", "best")}
        for name, expected in self._origin().items():
            if origin.get(name) != expected:
                raise ValueError(f"the state's {name} is {origin.get(name)!r}, not {expected!r}")
        self.load_state_dict(state)


_STATE = (
    "vectors",
    "exp_avg",
    "exp_avg_sq",
    "updates",
    "updates_before",
    "loss_scale",
    "finite_steps",
    "nonfinite_steps",
    "failed_at",
    "losses",
    "looks",
    "best",
)
_GROWING = ("losses", "looks")
"""One entry per step, or per look of the stopping rule, so far."""


def _initial_state(concept: Concept, backbone: Backbone, rule: StoppingConfig) -> dict[str, Tensor]:
    """Vectors, moments, where vectors started, all (R, D); counters (1,) and, of each vector, (R,); losses (steps,)
    and looks (looks,), in which those not yet taken are NaN; and the best look's vectors, (R, D) or none (0, D).

    The R rows: the word's vectors in the order in which they join, then one for each image that has a word of
    its own. These start at the vocabulary's mean, which says nothing yet.
    """
    words.check_placeholder(backbone.tokenizer, concept.placeholder_token)
    own, images = concept.num_vectors + len(concept.vectors_added_at), _image_words(concept)
    vectors = initialization.initial_vectors(backbone, concept, own)
    vectors = torch.cat([vectors, backbone.vocabulary_mean.expand(images, -1)])
    if concept.norm_control == "rescale":
        vectors = penalties.rescaled(vectors, vectors.new_tensor([[backbone.vocabulary_norm]]))
    # Gradients of a half-precision model underflow without a loss scale; others need none.
    scale = INITIAL_LOSS_SCALE if backbone.dtype == torch.float16 else 1.0
    count = torch.zeros(1, dtype=torch.int64, device=vectors.device)
    return {
        "vectors": vectors,
        "initial": vectors.clone(),
        "joins_at": count.new_tensor([0] * concept.num_vectors + [*concept.vectors_added_at] + [0] * images),
        "exp_avg": torch.zeros_like(vectors),
        "exp_avg_sq": torch.zeros_like(vectors),
        "updates": count,
        # The concept's updates before each vector's first: Adam's bias correction counts from there.
        "updates_before": count.new_zeros(own + images),
        "loss_scale": vectors.new_full((1,), scale),
        "finite_steps": count.clone(),
        "nonfinite_steps": count.clone(),
        "failed_at": count - 1,
        "losses": vectors.new_full((concept.steps,), math.nan),
        "looks": vectors.new_full((stopping.count(concept.steps, rule),), math.nan),
        "best": vectors.clone() if rule.rule == "clip" else vectors[:0].clone(),
    }


def _cached_latents(images: np.ndarray, backbone: Backbone, flips: bool) -> dict[str, Tensor]:
    """Moments of the latents of every image x crop (x flip), in this order: two (N * A * F, C, h, w).

    A step then draws from the posterior they describe: the same distribution as encoding anew each time.
    images: uint8 (N, A, S, S, 3).
    """
    variants = np.stack([images, images[:, :, :, ::-1]], axis=2) if flips else images
    means, stds = backbone.latent_moments(variants.reshape(-1, *images.shape[2:]))
    return {"latent_means": means, "latent_stds": stds}


def _image_words(concept: Concept) -> int:
    """Number of images that have a word of their own: all or none."""
    return len(concept.images) if concept.per_image_probability > 0 else 0


def _prompt_ids(concept: Concept, backbone: Backbone) -> Tensor:
    """int64 (stages * (1 + image words) * (templates + captions), L), on the model's device.

    For each number of vectors that the word has in turn: all prompts with the word alone, then all with the
    first image's word beside it ("a photo of {} with S_1": Gal et al. 2022, "Per-image tokens"), and so on.
    """
    word = concept.placeholder_token
    # Characters for private use, which no prompt has in it
    image_words = {f"\ue000image {index}\ue001": 1 for index in range(_image_words(concept))}
    filled = [word, *(f"{word} with {image_word}" for image_word in image_words)]
    prompts = [words.fill(prompt, by) for by in filled for prompt in concept.templates + concept.captions]
    stages = []
    for absent in range(len(concept.vectors_added_at), -1, -1):
        count = concept.num_vectors + len(concept.vectors_added_at) - absent
        ids = words.tokenize(backbone, prompts, {word: count, **image_words})
        for prompt, line in zip(prompts, ids, strict=True):
            if line.max() < backbone.vocabulary_size:
                raise ValueError(f"the prompt {prompt!r} doesn't contain the word {word!r}")
        # Rows of vectors that aren't there yet lie between the word's and the images'.
        stages.append(torch.where(ids >= backbone.vocabulary_size + count, ids + absent, ids))
    return torch.cat(stages).to(backbone.device)


def learning_rate(step: int, steps: int, base: float, training: TrainingConfig) -> float:
    """The learning rate of step 0 <= step < steps: a linear warm-up, then constant, linear or cosine to 0."""
    warmup = training.lr_warmup_steps
    if step < warmup:
        return base * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if training.lr_schedule == "linear":
        return base * (1 - progress)
    if training.lr_schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * progress))
    return base
