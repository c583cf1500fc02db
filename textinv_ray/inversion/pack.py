"""Many concepts in one forward and backward pass of the frozen model, each learned as if it were alone.

Samples don't interact in the model (it has no batch normalization). So the gradient of the sum of all concepts' losses
is, for each word, the gradient of its own loss. Everything else is per concept and batched here: Adam's bias
correction, learning rate, gradient clipping, loss scale, and the check for non-finite values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import TrainingConfig
from textinv_ray.inversion import adam, context, directional, penalties, words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.task import ConceptTask, learning_rate

LOSS_SCALE_GROWTH_STEPS = 2000
"""Finite steps in a row after which the loss scale doubles."""
FAILURE_CHECK_INTERVAL = 10
"""Steps between reads of `failed_at` from the device; each read waits for the device."""


class Pack:
    """Up to `size` concepts that take their steps together. A slot that becomes free can be refilled at once."""

    def __init__(self, backbone: Backbone, config: JobConfig, size: int) -> None:
        self.backbone = backbone
        self.training = config.training
        self.stopping = config.stopping
        self.size = size
        self._learned_columns = backbone.learned_columns(config.training.encoders)
        self._rate_factors = backbone.rate_factors(config.training.encoder_rates)
        self.tasks: list[ConceptTask] = []
        self._tensors: dict[str, Tensor] = {}
        self._steps_taken = 0

    @property
    def free(self) -> int:
        """How many more concepts can be added."""
        return self.size - len(self.tasks)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the training images of all concepts here; None while there is none."""
        return self.tasks[0].concept.shape if self.tasks else None

    def add(self, task: ConceptTask) -> None:
        """Adds a concept, which continues from its own step.

        Raises ValueError when no slot is free, it is done, or its images are of another shape than those here.
        """
        if self.free <= 0:
            raise ValueError(f"all {self.size} slots of the pack are taken")
        if task.done or task.failed:
            raise ValueError(f"nothing left to do for {task.concept.concept_id!r}")
        if self.shape not in (None, task.concept.shape):
            raise ValueError(
                f"{task.concept.concept_id!r} has images of the shape {task.concept.shape}, not {self.shape}"
            )
        self._stack([*self.tasks, task])

    def remove(self, task: ConceptTask) -> None:
        """Removes a concept; it keeps its state as it is."""
        own = {name: tensor.clone() for name, tensor in task.tensors.items()}
        self._stack([other for other in self.tasks if other is not task])
        task.tensors = own

    def step(self) -> list[ConceptTask]:
        """Takes one optimizer step of every concept. Removes and returns those that are done or have failed.

        If `stopping.rule: dvar` ends some, these leave and this call takes no step, so that the caller can fill their
        slots first. When this raises (out of memory), no concept has changed, and the step can be repeated with
        fewer concepts.
        """
        stopped = self._evaluate_losses()
        if stopped:
            return stopped
        losses, gradient = self.losses_and_gradient()
        tasks, tensors = self.tasks, self._tensors
        rates = [
            learning_rate(
                task.step,
                task.steps,
                task.concept.learning_rate,
                self.training,
                task.concept.lr_schedule,
            )
            for task in tasks
        ]
        steps = torch.tensor([task.step for task in tasks])
        steps_on_device = self._to_device(steps)
        joins_in = tensors["joins_at"] - steps_on_device[self._concept_of_row]
        absent, made = joins_in > 0, tensors["updates"][self._concept_of_row]
        tensors["updates_before"].copy_(torch.where(joins_in >= 0, made, tensors["updates_before"]))
        gradient += self._penalty_gradient(absent) + self._context_gradient()
        if self._learned_columns is not None:
            gradient *= self._learned_columns  # the other columns stay as they are
        update(
            tensors,
            gradient,
            losses,
            concept_of_row=self._concept_of_row,
            rates=self._to_device(torch.tensor(rates, dtype=self.backbone.word_dtype)),
            steps=steps_on_device,
            training=self.training,
            scaled=self.backbone.dtype == torch.float16,
            updates_before=tensors["updates_before"],
            rescaled=torch.where(absent[:, None], 0, self._rescaled),
            encoder_norms=self.backbone.encoder_norms,
            learned_columns=self._learned_columns,
            rate_factors=self._rate_factors,
            turning=self._turning(absent),
        )
        self._tensors["losses"][self._to_device(steps + self._first_loss)] = losses
        for task in tasks:
            task.step += 1
        self._steps_taken += 1
        return self._leavers()

    def losses_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Gal et al. 2022, eq. (2), for every concept: the mean loss over its samples, and its gradient.

        Returns the losses (K,), and the gradient (R, D) of sum_k scale_k loss_k by all word vectors: samples don't
        interact, so each row is the gradient of its own concept's loss, times that concept's loss scale.
        """
        draws = [task.draw() for task in self.tasks]
        latents_at = torch.cat([draw.latents for draw in draws]) + self._first_latent
        prompts_at = torch.cat([draw.prompts for draw in draws]) + self._first_prompt
        uniform = torch.cat([draw.levels for draw in draws])
        size = self._tensors["latent_means"].shape[-2:]
        levels = self._to_device(self.backbone.levels(uniform, self.training.timesteps, size))
        chosen = self._to_device(torch.stack([latents_at, prompts_at]))
        noise = self._to_device(torch.cat([draw.noise for draw in draws], dim=1)).to(self.backbone.word_dtype)

        tensors = self._tensors
        latents = tensors["latent_means"][chosen[0]] + tensors["latent_stds"][chosen[0]] * noise[0]
        ids = words.shift(tensors["prompt_ids"][chosen[1]], self._first_row[:, None])

        rows = tensors["vectors"].detach().requires_grad_()
        condition = self.backbone.encode(
            ids, rows, tensors["time_ids"][chosen[0]], learned=self.training.encoders
        )
        per_sample = self.backbone.denoising_loss(
            latents, noise[1], levels, condition, self.training, tensors["pixel_weights"][chosen[0]]
        )
        losses = per_sample.new_zeros(len(self.tasks)).index_add(
            0, self._concept_of_sample, per_sample / self._batch_size_of_sample
        )
        (gradient,) = torch.autograd.grad((losses * tensors["loss_scale"]).sum(), rows)
        return losses.detach(), gradient

    def _evaluate_losses(self) -> list[ConceptTask]:
        """With `stopping.rule: dvar`, evaluates the words that are due. Removes and returns those that it ends.

        Waits for the device only from `min_steps` on, where learning may end. Concepts that begin together are
        evaluated together; and as they end at an evaluation, so are those that take their slots.
        """
        due = [place for place, task in enumerate(self.tasks) if task.evaluation_due]
        if self.stopping.rule != "dvar" or not due:
            return []
        losses = self._fixed_losses(due)
        first = self._starts("evaluations")[due]
        numbers = torch.tensor([self.tasks[place].step // self.stopping.dvar.every for place in due])
        self._tensors["evaluations"][self._to_device(first + numbers)] = losses
        for place in due:
            self.tasks[place].record()
            if self.tasks[place].may_stop:
                self.tasks[place].apply_stopping()
        stopped = [task for task in self.tasks if task.stopped]
        for task in stopped:
            self.remove(task)
        return stopped

    @torch.no_grad()
    def _fixed_losses(self, due: list[int]) -> Tensor:
        """The mean loss on the fixed batch of each concept that is due. due: places in `tasks`. Returns (len(due),)."""
        size, tensors = self.stopping.dvar.batch_size, self._tensors
        stages = torch.tensor([self.tasks[place].stage for place in due])
        firsts = torch.stack(
            [
                self._starts("fixed_noise")[due],
                self._starts("fixed_ids")[due] + size * stages,
                self._starts("vectors")[due],
            ]
        )
        within = torch.arange(size) * torch.tensor([[1], [1], [0]])
        chosen = self._to_device((firsts[:, :, None] + within[:, None]).flatten(1))
        losses = []
        # In chunks of a step's number of samples: a forward pass of that size needs less memory than the step
        for samples, lines, first_row in chosen.split(len(self._concept_of_sample), dim=1):
            ids = words.shift(tensors["fixed_ids"][lines], first_row[:, None])
            condition = self.backbone.encode(
                ids, tensors["vectors"], tensors["fixed_time_ids"][samples], learned=self.training.encoders
            )
            losses.append(
                self.backbone.denoising_loss(
                    tensors["fixed_latents"][samples],
                    tensors["fixed_noise"][samples],
                    tensors["fixed_levels"][samples],
                    condition,
                    self.training,
                    tensors["fixed_pixel_weights"][samples],
                )
            )
        return torch.cat(losses).reshape(len(due), size).mean(dim=1)

    def _starts(self, name: str) -> Tensor:
        """Index of each concept's first row in a stacked tensor: int64 (K,), on the CPU."""
        counts = torch.tensor([len(task.tensors[name]) for task in self.tasks])
        return counts.cumsum(0) - counts

    def _penalty_gradient(self, absent: Tensor) -> Tensor:
        """The gradient (R, D) of the penalty terms of each concept's loss, times its loss scale.

        absent: bool (R,), vectors that haven't joined their words yet; their rows are 0.
        """
        vectors = self._tensors["vectors"]
        gradient = penalties.regularization_gradient(vectors, self._tensors["initial"], self._regularization)
        gradient += penalties.norm_gradient(vectors, self.backbone.encoder_norms, self._norm_weight)
        scale = self._tensors["loss_scale"][self._concept_of_row]
        return torch.where(absent, 0, scale)[:, None] * gradient

    def _context_gradient(self) -> Tensor | float:
        """The gradient (R, D) of the context terms of concepts that have one in this step, times their loss scale."""
        prompts = {place: task.context_prompt for place, task in enumerate(self.tasks)}
        due = [place for place, prompt in prompts.items() if prompt is not None]
        if not due:
            return 0.0
        lines = self._starts("context_ids")[due] + torch.tensor([prompts[place] for place in due])
        chosen = self._to_device(torch.stack([torch.tensor(due), lines, self._starts("vectors")[due]]))
        concepts = [self.tasks[place].concept for place in due]
        weights = [concept.context_weight * concept.context_every for concept in concepts]
        tensors = self._tensors
        rows = tensors["vectors"].detach().requires_grad_()
        ids = words.shift(tensors["context_ids"][chosen[1]], chosen[2][:, None])
        losses = context.losses(self.backbone, ids, rows, tensors["initial"], self.training.encoders)
        scales = self._to_device(torch.tensor(weights, dtype=losses.dtype)) * tensors["loss_scale"][chosen[0]]
        (gradient,) = torch.autograd.grad((losses * scales).sum(), rows)
        return gradient

    def _turning(self, absent: Tensor) -> directional.Rows | None:
        """The vectors that take directional steps now; None when no concept here has that optimizer."""
        if all(task.concept.optimizer == "adam" for task in self.tasks):
            return None
        return directional.Rows((self._directional > 0) & ~absent[:, None], self._direction_prior)

    def _leavers(self) -> list[ConceptTask]:
        """Removes and returns the concepts that are done or have failed."""
        if self._steps_taken % FAILURE_CHECK_INTERVAL and not any(task.done for task in self.tasks):
            return []
        leavers = []
        for task, failed_at in zip(tuple(self.tasks), self._tensors["failed_at"].tolist(), strict=True):
            if failed_at >= 0:
                task.step = failed_at + 1
                task.failed = (
                    f"the loss or its gradient was not finite in {max(1, self.training.max_nonfinite_steps)} "
                    f"steps in a row, the last of them step {failed_at}"
                )
            if task.failed or task.done:
                leavers.append(task)
        for task in leavers:
            self.remove(task)
        return leavers

    def _stack(self, tasks: list[ConceptTask]) -> None:
        """Concatenates the tensors of these concepts. Each task's tensors become views of its part.

        When memory runs out here, the pack is unchanged.
        """
        names = tasks[0].tensors if tasks else {}
        lengths = {name: [len(task.tensors[name]) for task in tasks] for name in names}
        stacked_tensors = {name: torch.cat([task.tensors[name] for task in tasks]) for name in names}
        self.tasks, self._tensors = tasks, stacked_tensors
        if not tasks:
            return
        for name, stacked in self._tensors.items():
            for task, part in zip(tasks, stacked.split(lengths[name]), strict=True):
                task.tensors[name] = part

        concepts = torch.arange(len(tasks))
        batch_sizes = torch.tensor([task.concept.batch_size for task in tasks])
        concept_of_sample = concepts.repeat_interleave(batch_sizes)
        # On the CPU, where the draws are
        self._first_latent = self._starts("latent_means")[concept_of_sample]
        self._first_prompt = self._starts("prompt_ids")[concept_of_sample]
        self._first_loss = self._starts("losses")
        # On the device
        self._concept_of_sample = self._to_device(concept_of_sample)
        self._batch_size_of_sample = self._to_device(batch_sizes[concept_of_sample])
        self._first_row = self._to_device(self._starts("vectors")[concept_of_sample])
        rows = torch.tensor(lengths["vectors"])
        self._concept_of_row = self._to_device(concepts.repeat_interleave(rows))

        def of_rows(values: list[float]) -> Tensor:
            of_concepts = torch.tensor(values, dtype=self.backbone.word_dtype)
            return self._to_device(of_concepts.repeat_interleave(rows))[:, None]

        options = [task.concept for task in tasks]
        self._regularization = of_rows([concept.regularization_weight for concept in options])
        self._norm_weight = of_rows(
            [concept.norm_weight * (concept.norm_control == "regularize") for concept in options]
        )
        self._rescaled = of_rows([float(concept.norm_control == "rescale") for concept in options])
        self._directional = of_rows([float(concept.optimizer == "directional") for concept in options])
        self._direction_prior = of_rows([concept.direction_prior for concept in options])

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Copies to the model's device without waiting for the copy."""
        if self.backbone.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.backbone.device, non_blocking=True)


@torch.no_grad()
def update(
    state: dict[str, Tensor],
    gradient: Tensor,
    losses: Tensor,
    *,
    concept_of_row: Tensor,
    rates: Tensor,
    steps: Tensor,
    training: TrainingConfig,
    scaled: bool,
    updates_before: Tensor | None = None,
    rescaled: Tensor | None = None,
    encoder_norms: penalties.EncoderNorms = (),
    learned_columns: Tensor | None = None,
    rate_factors: Tensor | None = None,
    turning: directional.Rows | None = None,
) -> None:
    """One optimizer step of K concepts, in place: unscale, check, clip and step, all per concept.

    A concept whose loss or gradient isn't finite skips this step. With a dynamic loss scale (Micikevicius et al. 2018,
    section 3.2), a gradient that overflows halves the concept's scale, and LOSS_SCALE_GROWTH_STEPS finite steps in a
    row double it. A skipped step that the scale can't explain counts towards the concept's failure.

    state: the stacked tensors of the tasks. gradient: (R, D), of the losses times their loss scales. losses, rates,
    steps: (K,). concept_of_row: int64 (R,). scaled: whether the loss scale is dynamic (float16). updates_before:
    int64 (R,), the concept's updates before each vector joined; None: 0. rescaled: (R, 1), 1 for vectors that are
    rescaled to `encoder_norms` after the step, else 0. learned_columns: bool (D,), whose vectors move; None: all.
    rate_factors: (D,), of the learning rate in each column; None: 1. turning: vectors that take a
    `directional.step` in place of Adam's; None: none.
    """
    scale = state["loss_scale"]
    gradient = gradient / scale[concept_of_row, None]
    norms = torch.zeros_like(losses).index_add(0, concept_of_row, gradient.square().sum(dim=1)).sqrt()
    finite_loss, finite = losses.isfinite(), losses.isfinite() & norms.isfinite()
    taken = finite & (state["failed_at"] < 0)
    unclipped = gradient
    if training.max_grad_norm is not None:
        # The formula of torch.nn.utils.clip_grad_norm_
        gradient = gradient * (training.max_grad_norm / (norms + 1e-6)).clamp(max=1)[concept_of_row, None]

    updates = state["updates"] + 1
    updates_of_row = updates[concept_of_row] - (0 if updates_before is None else updates_before)
    rate = rates[concept_of_row, None]
    vectors, exp_avg, exp_avg_sq = adam.step(
        state["vectors"],
        gradient,
        state["exp_avg"],
        state["exp_avg_sq"],
        updates=updates_of_row[:, None],
        rate=rate if rate_factors is None else rate * rate_factors,
        training=training,
    )
    if turning is not None:
        turned = directional.step(
            state["vectors"], unclipped, state["initial"], rate=rate, prior=turning.prior, norms=encoder_norms
        )
        vectors = torch.where(turning.which, turned, vectors)
    if rescaled is not None:
        vectors = penalties.rescaled(vectors, rescaled, encoder_norms)
    if learned_columns is not None:
        vectors = torch.where(learned_columns, vectors, state["vectors"])
    moved = {"vectors": vectors, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, value in moved.items():
        state[name].copy_(torch.where(taken[concept_of_row, None], value, state[name]))
    state["updates"].copy_(torch.where(taken, updates, state["updates"]))

    overflow = finite_loss & ~finite & (scale > 1) & scaled
    counted = torch.where(overflow, state["nonfinite_steps"], state["nonfinite_steps"] + 1)
    state["nonfinite_steps"].copy_(torch.where(finite, 0, counted))
    failing = (state["failed_at"] < 0) & (state["nonfinite_steps"] >= max(1, training.max_nonfinite_steps))
    state["failed_at"].copy_(torch.where(failing, steps, state["failed_at"]))

    finite_steps = torch.where(finite, state["finite_steps"] + 1, 0)
    grows = scaled & (finite_steps >= LOSS_SCALE_GROWTH_STEPS)
    state["finite_steps"].copy_(torch.where(grows, 0, finite_steps))
    state["loss_scale"].copy_(torch.where(grows, scale * 2, torch.where(overflow, scale / 2, scale)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on the device or on the CPU (a plain RuntimeError of torch)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
