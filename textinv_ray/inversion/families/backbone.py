"""The protocol of a frozen diffusion model: encoding of prompts with learned words, noise prediction, loss, latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import ClassVar, Literal

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from textinv_ray.concepts.word_files import model_of
from textinv_ray.config.job import ReviewConfig
from textinv_ray.config.model_families import ModelFamily, vae_factor
from textinv_ray.config.training import TimestepsConfig, TrainingConfig
from textinv_ray.inversion import noise_levels
from textinv_ray.inversion.families import vae_codec
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.families.state_cache import Encoded
from textinv_ray.inversion.families.text_encoder import TextEncoder


class Backbone(ABC):
    """A text-to-image diffusion model with frozen weights: no method here changes a bit of them.

    Shapes: B samples, L tokens of a prompt (of all text encoders together in ids), D the length of a word's row (the
    vectors of all encoders, concatenated), R rows, (C, h, w) a latent. Samples don't interact in any method, so that a
    batch may be of many concepts.
    """

    family: ClassVar[ModelFamily]
    """What is known of the family before a model is loaded."""

    encoders: tuple[TextEncoder, ...]
    vae: AutoencoderKL | AutoencoderKLFlux2 | AutoencoderDC
    compiled: CompiledDenoiser | None
    """Predicts in place of `denoiser` where gradients are needed."""

    @classmethod
    @abstractmethod
    def load(cls, source: Source) -> Backbone:
        """Loads the weights. Raises OSError or ValueError when they can't be loaded, UserError for another family."""

    @property
    @abstractmethod
    def denoiser(self) -> ModelMixin:
        """The network that predicts: a UNet or a transformer."""

    @abstractmethod
    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """c(y) of prompts with learned words, in the model's dtype.

        input_ids: int64 (B, L); -1 - r stands for row r of `rows`, (R, D), which gradients reach. time_ids: (B, 6) of
        the images, see `Condition`; None: of whole images of the model's resolution. learned: names of the encoders
        that gradients go through; the others run once per prompt. None: all.
        """

    @abstractmethod
    def shift(self, size: tuple[int, int]) -> float:
        """The shift of noise levels that the model was trained with, for latents of height and width `size`."""

    @abstractmethod
    def as_levels(self, levels: Tensor) -> Tensor:
        """Levels in [0, 1] as `corrupt` and `predict` take them: (B,) -> (B,)."""

    @abstractmethod
    def loss_weights(self, levels: Tensor, training: TrainingConfig) -> Tensor | None:
        """Weights of the samples' losses by `training.loss_weight`: (B,) -> (B,) in `word_dtype`; None: all are 1.

        Raises UserError where the model has none.
        """

    @abstractmethod
    def corrupt(self, latents: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents z_t, and what the denoiser has to predict: two tensors (B, C, h, w).

        latents, noise: (B, C, h, w) in `word_dtype`. levels: (B,).
        """

    @abstractmethod
    def denoise(
        self, model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        """Calls the denoiser, or its compiled form, as the family calls it. Shapes as of `predict`."""

    @abstractmethod
    def pipeline(self, sampler: str) -> DiffusionPipeline:
        """diffusers' own pipeline around this model. sampler: a value of `review.sampler` that the family has."""

    def pipeline_inputs(self, condition: Condition, negative: Condition) -> dict[str, object]:
        """Conditions as arguments of the pipeline."""
        inputs: dict[str, object] = {
            "prompt_embeds": condition.hidden_states,
            "negative_prompt_embeds": negative.hidden_states,
        }
        if condition.pooled is not None:
            inputs |= {
                "pooled_prompt_embeds": condition.pooled,
                "negative_pooled_prompt_embeds": negative.pooled,
            }
        return inputs

    def sample_latents(
        self,
        condition: Condition,
        negative: Condition,
        generators: Sequence[torch.Generator],
        config: ReviewConfig,
        side: int,
    ) -> Tensor:
        """Samples latents by diffusers' own pipeline: (B, C, h, w), scaled as the denoiser sees them.

        generators: one for each image, on the CPU. side: of the images in pixels.
        """
        pipeline = self.pipeline(config.sampler)
        pipeline.set_progress_bar_config(disable=True)
        latents: Tensor = pipeline(
            **self.pipeline_inputs(condition, negative),
            height=side,
            width=side,
            generator=list(generators),
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            output_type="latent",
        ).images
        return latents

    def unconditional(self, count: int) -> Condition:
        """What classifier-free guidance takes where there is no negative prompt, `count` times: the empty prompt."""
        ids = [id_ for encoder in self.encoders for id_ in encoder.tokenize("", [], {}, negative=True)]
        empty = self.encode(torch.tensor([ids], device=self.device))
        return empty.map(lambda part: part.expand(count, *part.shape[1:]))

    def levels(
        self,
        uniform: Tensor,
        timesteps: TimestepsConfig | None = None,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Noise levels of uniform numbers in [0, 1): (B,) -> (B,), as `corrupt` and `predict` take them.

        timesteps: how they are drawn; None: as the model was trained. size: height and width of the latents; None: of
        the model's resolution.
        """
        height, width = size or (self.resolution // self.vae_factor,) * 2
        drawn = noise_levels.drawn(
            uniform, timesteps or TimestepsConfig(), self.family.timesteps, self.shift((height, width))
        )
        return self.as_levels(drawn)

    def encoded(
        self, input_ids: Tensor, rows: Tensor | None, learned: Collection[str] | None
    ) -> tuple[Encoded, ...]:
        """What each text encoder says of prompts. Arguments: see `encode`."""
        return tuple(
            encoder.encode(input_ids, rows, learned=learned is None or encoder.name in learned)
            for encoder in self.encoders
        )

    def learned_columns(self, names: Sequence[str] | None) -> Tensor | None:
        """Which columns of a word's row are learned, by names of text encoders: bool (D,); None: all.

        Raises UserError for an encoder that the model hasn't.
        """
        if names is None:
            return None
        self.family.check_encoders(names, [encoder.name for encoder in self.encoders])
        columns = torch.zeros(self.embedding_dim, dtype=torch.bool, device=self.device)
        for encoder in self.encoders:
            columns[encoder.columns] = encoder.name in names
        return columns

    def rate_factors(self, rates: Literal["same", "by_norm"]) -> Tensor | None:
        """What Adam's step size is multiplied with in each column of a word's row, by `training.encoder_rates`.

        (D,) in `word_dtype`; None: 1.
        """
        if rates == "same":
            return None
        factors = torch.ones(self.embedding_dim, dtype=self.word_dtype, device=self.device)
        for encoder in self.encoders[1:]:
            factors[encoder.columns] = encoder.root_mean_square / self.encoders[0].root_mean_square
        return factors

    def freeze(self) -> None:
        """Turns gradients of all weights and training behaviour off."""
        for model in self.models:
            model.requires_grad_(False).eval()

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """All networks."""
        return (*(encoder.model for encoder in self.encoders), self.denoiser, self.vae)

    def to(self, device: torch.device | str) -> Backbone:
        """Moves the model's weights, and returns this backbone."""
        for model in self.models:
            model.to(device)
        return self

    @property
    def checkpoints_activations(self) -> bool:
        """Whether the backward pass recomputes most of the denoiser's activations."""
        return bool(self.denoiser.is_gradient_checkpointing)

    def checkpoint_activations(self) -> None:
        """Turns activation checkpointing of the denoiser on (Chen et al. 2016): less memory, slower backward passes.

        Gradients don't change; where kernels are deterministic, not by a bit.
        """
        # The denoiser draws no random numbers (no dropout in eval mode), so no generator state is saved
        self.denoiser.enable_gradient_checkpointing(
            partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        )

    @contextmanager
    def vae_on_device(self) -> Iterator[None]:
        """The VAE on the model's device. Between uses it stays there, or goes to the host where memory is short: where
        activations are checkpointed.
        """
        self.vae.to(self.device)
        try:
            yield
        finally:
            if self.checkpoints_activations:
                self.vae.to("cpu")

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen weights; the VAE may have another."""
        return self.denoiser.dtype

    @property
    def word_dtype(self) -> torch.dtype:
        """Precision of words, optimizer state, latents and losses: that of the model, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def takes_negative_prompts(self) -> bool:
        """Whether there is classifier-free guidance with negative prompts."""
        return self.family.negative_prompts

    @property
    def resolution(self) -> int:
        """Side of the model's square images in pixels."""
        return self.family.resolution(self.denoiser.config, self.vae.config)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent along a side."""
        return vae_factor(self.vae.config)

    @property
    def embedding_dim(self) -> int:
        """D, the length of a word's row: the sum over encoders."""
        return self.encoders[-1].columns.stop

    @property
    def max_tokens(self) -> int:
        """L, the length of a prompt's ids: the sum over encoders."""
        return self.encoders[-1].tokens.stop

    @cached_property
    def vocabulary_mean(self) -> Tensor:
        """Mean of the frozen embedding tables: (D,) in `word_dtype`."""
        return torch.cat([encoder.mean for encoder in self.encoders])

    @cached_property
    def encoder_norms(self) -> tuple[tuple[slice, float], ...]:
        """Of each encoder: its columns of a word's rows, and the mean norm of its frozen embedding table."""
        return tuple((encoder.columns, encoder.norm) for encoder in self.encoders)

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """A word's rows (V, D) of its vectors by encoder, each (V, its D).

        Raises ValueError when encoders or sizes aren't this model's.
        """
        own = {encoder.name: encoder.dim for encoder in self.encoders}
        sizes = {name: vectors.shape[1] for name, vectors in parts.items()}
        # A file for one encoder may not say which; its size must fit
        if sizes != own and not (len(own) == 1 and list(sizes.values()) == list(own.values())):
            without = [name for name in sizes if name not in own]
            absent = (
                f"; the model was loaded without {without[0]}" if set(own) < set(sizes) and without else ""
            )
            raise ValueError(
                f"was learned for {model_of(sizes)}: it has vectors for {_listed(sizes)}, "
                f"this {self.family.name} model takes {_listed(own)}{absent}"
            )
        return torch.cat(list(parts.values()) if len(own) == 1 else [parts[name] for name in own], dim=1)

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """A word's vectors by encoder, each (V, its D), of its rows (V, D)."""
        return {encoder.name: rows[:, encoder.columns] for encoder in self.encoders}

    def predict(self, noisy_latents: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        """eps_theta(z_t, t, c), or what else the model predicts.

        noisy_latents: (B, C, h, w). levels: (B,). Returns (B, C, h, w) in the model's dtype.
        """
        noisy_latents = noisy_latents.to(self.dtype)
        if self.compiled and torch.is_grad_enabled() and len(levels) <= self.compiled.samples:
            return self.compiled(self.denoise, noisy_latents, levels, condition)
        return self.denoise(self.denoiser, noisy_latents, levels, condition)

    def denoising_loss(
        self,
        latents: Tensor,
        noise: Tensor,
        levels: Tensor,
        condition: Condition,
        training: TrainingConfig | None = None,
        pixel_weights: Tensor | None = None,
    ) -> Tensor:
        """||target - prediction||^2, divided by C h w, for each sample: Gal et al. 2022, eq. (2).

        latents (z), noise (eps): (B, C, h, w) in `word_dtype`. levels: (B,). training: whose `loss_weight` counts;
        None: no weights. pixel_weights: (B, 1, h, w), of the squared errors; None: all are 1. Returns (B,) in
        `word_dtype`.
        """
        noisy_latents, target = self.corrupt(latents, noise, levels)
        prediction = self.predict(noisy_latents, levels, condition)
        errors = F.mse_loss(prediction.to(target.dtype), target, reduction="none")
        losses = (errors if pixel_weights is None else errors * pixel_weights).mean(dim=(1, 2, 3))
        weights = self.loss_weights(levels, training) if training else None
        return losses if weights is None else losses * weights

    @torch.no_grad()
    def latent_moments(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior q(z | x), shifted and scaled as the denoiser expects z.

        images: uint8 (N, H, W, 3). Returns two tensors (N, C, h, w) in `word_dtype` on the model's device.
        Raises ValueError when the VAE gives values that aren't finite.
        """
        with self.vae_on_device():
            return vae_codec.latent_moments(self.vae, images, self.word_dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures of latents that are scaled as the denoiser sees them: (n, C, h, w) -> uint8 (n, H, W, 3).

        Within `vae_on_device`.
        """
        return vae_codec.decode(self.vae, latents)


def _listed(sizes: Mapping[str, int]) -> str:
    return " and ".join(f"{name} ({size})" for name, size in sizes.items())
