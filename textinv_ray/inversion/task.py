"""One concept's optimisation: the random draws of each step, and the state that is saved and resumed.

Shapes: K concepts, R word vectors, V vectors of one word, D the embedding size, B samples of a step, L tokens of a
prompt, (C, h, w) a latent. N images, each with A crops, each stored F times (2 with flips, else 1).
"""

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
from textinv_ray.config.training import Schedule, StoppingConfig
from textinv_ray.inversion import context, initialization, penalties, prompt_ids, stopping, words
from textinv_ray.inversion.cached_latents import cached_latents
from textinv_ray.inversion.draws import Draws
from textinv_ray.inversion.families.backbone import Backbone

STATE_FORMAT = "textinv_ray.concept_task.5"
"""Written into every state file. Change it when the state's tensors change: files of other formats are rejected."""
INITIAL_LOSS_SCALE = 2.0**16
"""For float16 models (Micikevicius et al. 2018, section 3.2)."""


class ConceptTask:
    """One concept being learned. It holds the state and makes the draws; a `Pack` takes the steps."""

    def __init__(self, concept: Concept, backbone: Backbone, config: JobConfig) -> None:
        """Encodes the images with the VAE, once, and tokenizes all prompts.

        Raises ValueError when the initializer gives no token, when a prompt is so long that the word is cut off, and
        where `context.check` does.
        """
        context.check(concept, backbone, config.training.encoders)
        self.step = 0
        self.failed: str | None = None
        """The reason why learning failed; None while it hasn't."""
        self.stopped: str | None = None
        """The stopping rule that ended learning before all steps were taken; None if none has."""
        self._evaluated_at = -1
        self._stopping = config.stopping
        self._evaluation_digest = stopping.evaluation_digest(concept, config)
        self._flip_probability = config.data.flip_probability
        self._noise_offset = config.training.noise_offset
        self._caption_dropout = config.training.caption_dropout
        self._scales_loss = backbone.dtype == torch.float16
        self._generator = torch.Generator()
        latents = cached_latents(
            concept,
            backbone,
            flips=self._flip_probability > 0,
            unmasked_weight=config.training.unmasked_weight,
        )
        if concept.init_from == "auto":
            chosen = initialization.choose_initializer(
                backbone,
                concept,
                latents["latent_means"],
                latents["time_ids"],
                config.training.timesteps,
                latents["pixel_weights"],
            )
            concept = dataclasses.replace(concept, initializer_token=chosen)
        self.concept = concept
        """The concept, with the initializer_token that `init_from: auto` has chosen."""
        self.tensors = {
            **_initial_state(
                concept, backbone, config.stopping, backbone.learned_columns(config.training.encoders)
            ),
            **latents,
            "prompt_ids": prompt_ids.of_training(concept, backbone, self._texts),
            "context_ids": prompt_ids.of_context(concept, backbone),
        }
        """The state (see `_initial_state`) and the cached inputs. In a pack, these are views of the pack's tensors."""
        if config.stopping.rule == "dvar":
            self.tensors |= stopping.fixed_batch(
                # A spawn key that no step uses, so these draws are independent of all steps' draws
                self._draw(
                    np.random.SeedSequence(concept.seed, spawn_key=(1,)), config.stopping.dvar.batch_size
                ),
                latents,
                self.tensors["prompt_ids"],
                backbone,
                stages=1 + len(concept.vectors_added_at),
                timesteps=config.training.timesteps,
            )

    @property
    def _texts(self) -> tuple[str, ...]:
        """All training prompts with `{}`: templates, captions, and the word alone where captions are dropped."""
        return self.concept.templates + self.concept.captions + ("{}",) * (self._caption_dropout > 0)

    @property
    def steps(self) -> int:
        """The most optimizer steps that are taken; a stopping rule may end learning before."""
        return self.concept.steps

    @property
    def done(self) -> bool:
        """Whether all steps were taken, or a stopping rule ended learning."""
        return self.step >= self.concept.steps or self.stopped is not None

    @property
    def evaluation_due(self) -> bool:
        """Whether the stopping rule must evaluate the word as it is now, before the next step or after the last."""
        if self.stopped or self._evaluated_at == self.step:
            return False
        return stopping.evaluation_due(self.step, self.steps, self._stopping, self.concept.min_steps)

    @property
    def may_stop(self) -> bool:
        """Whether the stopping rule may end learning at this step."""
        return self.step >= stopping.min_steps(self.concept, self._stopping)

    def record(self, value: float | None = None) -> None:
        """Marks the evaluation of this step as done. `value`: its result, unless the caller wrote it to `tensors`."""
        if value is not None:
            self.tensors["evaluations"][stopping.num_evaluations(self.step, self._stopping) - 1] = value
            if self.best_step == self.step:
                self.tensors["best"].copy_(self.tensors["vectors"])
        self._evaluated_at = self.step

    @property
    def best_step(self) -> int | None:
        """With `rule: clip`, the step of the best evaluation so far, else None. Waits for the device."""
        evaluations = self._evaluations_so_far.cpu().numpy()
        return stopping.best_step(evaluations, self.concept, self._stopping)

    def apply_stopping(self) -> None:
        """Ends learning if the stopping rule says so after this step's evaluation. Waits for the device."""
        if int(self.tensors["failed_at"]) < 0:
            self._apply_stopping(self._evaluations_so_far, self.step)

    @property
    def _evaluations_so_far(self) -> Tensor:
        return self.tensors["evaluations"][: stopping.num_evaluations(self.step, self._stopping)]

    def _apply_stopping(self, evaluations: Tensor, step: int) -> None:
        """Sets `stopped`. Raises ValueError when learning would have ended before `step`."""
        end = stopping.stopping_step(evaluations.cpu().double().numpy(), self.concept, self._stopping)
        if end is not None and end < step:
            raise ValueError(f"the state is at step {step}, where learning ends at step {end}")
        self.stopped = self._stopping.rule if end == step < self.steps else None

    @property
    def vectors(self) -> Tensor:
        """The word as it is now; with `rule: clip`, once learning and its evaluations are over, the best word.

        float32 (V, D) on the CPU, a copy. V grows at the steps `vectors_added_at`.
        """
        chosen = self.done and not self.evaluation_due and self.best_step is not None
        return self._word(self.tensors["best" if chosen else "vectors"], self.stage)

    @property
    def initial_vectors(self) -> Tensor:
        """The word before the first step: float32 (V, D) on the CPU, a copy."""
        return self._word(self.tensors["initial"], stage=0)

    @property
    def initial_word(self) -> Tensor:
        """What each vector of the word as it is now was at its start: float32 (V, D) on the CPU, a copy."""
        return self._word(self.tensors["initial"], self.stage)

    @property
    def start(self) -> Tensor | None:
        """What reviews compare the word with: `initial_vectors`, or None when that is the initializer as plain text."""
        return None if self.concept.initializer_token else self.initial_vectors

    @property
    def is_unchanged(self) -> bool:
        """Whether the word is done, and still is what reviews compare it with. Waits for the device."""
        start = self.start
        return self.done and start is not None and torch.equal(start, self.vectors)

    def _word(self, rows: Tensor, stage: int) -> Tensor:
        count = self.concept.num_vectors + stage
        return rows[:count].detach().to("cpu", torch.float32, copy=True)

    @property
    def stage(self) -> int:
        """How many vectors have joined the word so far (progressive extension)."""
        return sum(added_at <= self.step for added_at in self.concept.vectors_added_at)

    @property
    def loss_history(self) -> Tensor:
        """The loss of each step so far: float32 (step,) on the CPU, a copy."""
        return self.tensors["losses"][: self.step].to("cpu", torch.float32, copy=True)

    def draw(self) -> Draws:
        """The random choices of the current step: a function of the concept's seed and the step alone.

        Every step seeds a generator of its own. So no generator state is saved, and no other concept can advance it.
        """
        return self._draw(np.random.SeedSequence([self.concept.seed, self.step]), self.concept.batch_size)

    def _draw(self, seeds: np.random.SeedSequence, size: int) -> Draws:
        images, crops = self.concept.images.shape[:2]
        # NumPy guarantees SeedSequence's result across platforms and versions.
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
        if self._caption_dropout > 0:
            alone = torch.rand(size, generator=generator) < self._caption_dropout
            prompts = torch.where(alone, templates + captions, prompts)
        if self._noise_offset > 0:
            noise[1] += self._noise_offset * torch.randn((*noise.shape[1:3], 1, 1), generator=generator)
        # `prompt_ids` has a block per stage and companion: no other word, or the word of image 0, 1, ...
        companions = 1 + prompt_ids.image_words(self.concept)
        block = torch.full_like(prompts, self.stage * companions)
        if companions > 1:
            beside = torch.rand(size, generator=generator) < self.concept.per_image_probability
            block = torch.where(beside, block + 1 + image, block)
        prompts += block * len(self._texts)
        return Draws(latents, prompts, uniform[4], noise)

    @property
    def context_prompt(self) -> int | None:
        """Line of `context_ids` that context regularisation draws for the current step; None in steps without it."""
        drawn = context.drawn(self.concept, self.step)
        return None if drawn is None else self.stage * len(self.concept.context_prompts) + drawn

    def state_dict(self) -> dict[str, Tensor]:
        """What a later run needs to continue, as copies on the CPU: vectors, Adam's moments, counters and series."""
        state = {name: self.tensors[name].to("cpu", copy=True) for name in _STATE}
        state["losses"] = state["losses"][: self.step].clone()
        count = stopping.num_evaluations(self.step, self._stopping)
        state["evaluations"] = state["evaluations"][:count].clone()
        return {**state, "step": torch.tensor([self.step])}

    def load_state_dict(self, state: dict[str, Tensor], *, scales_loss: bool = False) -> None:
        """Continues from a `state_dict`. Not allowed while in a pack. Raises ValueError when it doesn't fit.

        scales_loss: whether the state is known to be of a run with a loss scale.
        """
        # States of earlier versions are without the initial vectors
        state = {"initial": self.tensors["initial"], **state}
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
        losses, evaluations = len(state["losses"]), state["evaluations"]
        if not 0 <= step <= self.steps or losses != step:
            raise ValueError(f"the state is at step {step} of {self.steps} with {losses} losses")
        if len(evaluations) != stopping.num_evaluations(step, self._stopping):
            raise ValueError(
                f"the state is at step {step} with {len(evaluations)} evaluations of the stopping rule"
            )
        if not all(
            torch.isfinite(state[name]).all()
            for name in ("vectors", "initial", "exp_avg", "exp_avg_sq", "best")
        ):
            raise ValueError("the state has values that are not finite")
        if float(state["loss_scale"]) == 1 and not scales_loss:
            # Saved by a run in full precision, which has no loss scale: keep this run's initial one.
            state = {**state, "loss_scale": own["loss_scale"]}
        self._apply_stopping(evaluations, step)
        for name in _STATE:
            own[name][: len(state[name])] = state[name].to(own[name].device)
        self.step = step
        self._evaluated_at = step if len(evaluations) and evaluations[-1].isfinite() else -1

    def to_bytes(self) -> bytes:
        """The state as one safetensors file of a few kilobytes. Equal states give equal bytes."""
        # The metadata is one entry, because safetensors writes several in random order.
        chosen = (
            {"initializer_token": self.concept.initializer_token} if self.concept.init_from == "auto" else {}
        )
        origin = {**self._origin(), **chosen, "scales_loss": self._scales_loss}
        return safetensors.torch.save(self.state_dict(), {"origin": json.dumps(origin)})

    def _origin(self) -> dict[str, str]:
        return {
            "format": STATE_FORMAT,
            "concept_id": self.concept.concept_id,
            "state_fingerprint": self.concept.state_fingerprint,
            "evaluation_digest": self._evaluation_digest,
        }

    def restore(self, data: bytes) -> None:
        """Continues from `to_bytes`. Not allowed while in a pack.

        Raises ValueError, and changes nothing, when the file is corrupt, belongs to another concept, has more steps
        than this concept, or was saved with settings under which the steps so far would have differed.
        """
        try:
            state = safetensors.torch.load(data)
            length = int.from_bytes(data[:8], "little")
            origin = dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["origin"]))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a state file: {error}") from error
        if not self._evaluation_digest:  # no rule here: the evaluations of an earlier rule don't matter
            origin["evaluation_digest"] = ""
            state |= {name: self.tensors[name] for name in ("evaluations", "best")}
        for name, expected in self._origin().items():
            if origin.get(name) != expected:
                raise ValueError(f"the state's {name} is {origin.get(name)!r}, not {expected!r}")
        self.load_state_dict(state, scales_loss=origin.get("scales_loss") is True)
        # On another kind of device two words that are nearly as good may change places
        if self.concept.init_from == "auto" and isinstance(chosen := origin.get("initializer_token"), str):
            self.concept = dataclasses.replace(self.concept, initializer_token=chosen)


_STATE = (
    "vectors",
    "initial",
    "exp_avg",
    "exp_avg_sq",
    "updates",
    "updates_before",
    "loss_scale",
    "finite_steps",
    "nonfinite_steps",
    "failed_at",
    "losses",
    "evaluations",
    "best",
)
_GROWING = ("losses", "evaluations")
"""Series with one entry per step, or per evaluation of the stopping rule, so far."""


def _initial_state(
    concept: Concept, backbone: Backbone, rule: StoppingConfig, learned: Tensor | None
) -> dict[str, Tensor]:
    """The state before the first step. learned: bool (D,), the columns that learning changes; None: all.

    vectors, initial (their values at the start), exp_avg, exp_avg_sq: (R, D). joins_at, updates_before: int64 (R,).
    updates, finite_steps, nonfinite_steps, failed_at, loss_scale: (1,). losses: (steps,) and evaluations: (number of
    evaluations,), NaN where there is none yet. best: the vectors of the best evaluation, (R, D), or (0, D) when the
    rule isn't `clip`.

    The R rows are the word's vectors in the order in which they join, those that join later from the mean of what
    learning starts from, then the word of each image if
    `per_image_probability` is set. Images' words start at the vocabulary's mean, which carries no meaning yet.
    """
    words.check_placeholder(backbone, concept.placeholder_token)
    joining, images = len(concept.vectors_added_at), prompt_ids.image_words(concept)
    own = concept.num_vectors + joining
    vectors = initialization.initial_vectors(backbone, concept, concept.num_vectors)
    if joining:
        # The first ones must not depend on how many join them later
        mean = initialization.initial_vectors(backbone, concept, 1)
        vectors = torch.cat([vectors, mean.expand(joining, -1)])
    vectors = torch.cat([vectors, backbone.vocabulary_mean.expand(images, -1)])
    if concept.norm_control == "rescale" or concept.optimizer == "directional":
        rescaled = penalties.rescaled(vectors, torch.ones_like(vectors[:, :1]), backbone.encoder_norms)
        vectors = rescaled if learned is None else torch.where(learned, rescaled, vectors)
    # float16 gradients underflow without a loss scale; bfloat16 has the exponents of float32.
    scale = INITIAL_LOSS_SCALE if backbone.dtype == torch.float16 else 1.0
    count = torch.zeros(1, dtype=torch.int64, device=vectors.device)
    return {
        "vectors": vectors,
        "initial": vectors.clone(),
        "joins_at": count.new_tensor([0] * concept.num_vectors + [*concept.vectors_added_at] + [0] * images),
        "exp_avg": torch.zeros_like(vectors),
        "exp_avg_sq": torch.zeros_like(vectors),
        "updates": count,
        # The number of the concept's updates before each vector joined: Adam's t counts from there.
        "updates_before": count.new_zeros(own + images),
        "loss_scale": vectors.new_full((1,), scale),
        "finite_steps": count.clone(),
        "nonfinite_steps": count.clone(),
        "failed_at": count - 1,
        "losses": vectors.new_full((concept.steps,), math.nan),
        "evaluations": vectors.new_full((stopping.num_evaluations(concept.steps, rule),), math.nan),
        "best": vectors.clone() if rule.rule == "clip" else vectors[:0].clone(),
    }


def learning_rate(
    step: int, steps: int, base: float, training: TrainingConfig, schedule: Schedule | None = None
) -> float:
    """The learning rate of a step in [0, steps): a linear warm-up, then constant, or linear or cosine decay to 0.

    schedule: None: `training.lr_schedule`.
    """
    warmup, schedule = training.lr_warmup_steps, schedule or training.lr_schedule
    if step < warmup:
        return base * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return base * (1 - progress)
    if schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * progress))
    return base
