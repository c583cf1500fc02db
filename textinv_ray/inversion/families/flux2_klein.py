"""Flux.2 Klein: states of three layers of Qwen 3, latents in patches that batch statistics normalise.

Black Forest Labs 2026. The base models take classifier-free guidance; those that were distilled to few steps take none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import Tensor
from transformers import Qwen2TokenizerFast, Qwen3Model

from textinv_ray.config.job import ReviewConfig
from textinv_ray.config.model_families import FLUX_2_KLEIN
from textinv_ray.inversion.families import vae_codec
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.flow import FlowBackbone
from textinv_ray.inversion.families.language_encoder import QwenEncoder
from textinv_ray.inversion.families.precision import choose_vae_dtype
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.families.text_encoder import in_order

TOKENS = 512
"""`max_sequence_length` of the pipeline."""
LAYERS = (9, 18, 27)
"""`text_encoder_out_layers` of the pipeline: after so many layers of Qwen 3 its states are read."""


@dataclass(eq=False, repr=False)
class Flux2Klein(FlowBackbone):
    """A Flux.2 Klein model of 4 or 9 billion weights, base or distilled."""

    family = FLUX_2_KLEIN

    tokenizer: Qwen2TokenizerFast
    text_encoder: Qwen3Model
    transformer: Flux2Transformer2DModel
    vae: AutoencoderKLFlux2
    scheduler: FlowMatchEulerDiscreteScheduler
    is_distilled: bool = False
    """Whether it was distilled to few steps: then there is no classifier-free guidance."""
    compiled: CompiledDenoiser | None = None

    def __post_init__(self) -> None:
        (name,) = self.family.encoder_names([self.text_encoder.config.hidden_size])
        encoder = QwenEncoder(name, self.tokenizer, self.text_encoder, length=TOKENS, layers=LAYERS)
        self.encoders = in_order([encoder])
        self.freeze()

    @classmethod
    def load(cls, source: Source) -> Backbone:
        """See `Backbone.load`. Layers of Qwen 3 that nothing reads aren't kept."""
        index = Flux2KleinPipeline.load_config(source.path, revision=source.revision)
        text_encoder = Qwen3Model.from_pretrained(dtype=source.dtype, **source.weights("text_encoder"))
        # The last state is normalised, so one more layer is kept than is read
        del text_encoder.layers[LAYERS[-1] + 1 :]
        return cls(
            tokenizer=Qwen2TokenizerFast.from_pretrained(**source.part("tokenizer")),
            text_encoder=text_encoder,
            transformer=Flux2Transformer2DModel.from_pretrained(
                torch_dtype=source.dtype, **source.weights("transformer")
            ),
            vae=AutoencoderKLFlux2.from_pretrained(
                torch_dtype=choose_vae_dtype(source.vae_dtype, source.device, source.dtype, True),
                **source.weights("vae"),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(**source.part("scheduler")),
            is_distilled=bool(index.get("is_distilled")),
        )

    @property
    def takes_negative_prompts(self) -> bool:
        """Only the base models do."""
        return not self.is_distilled

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """Qwen's states of three layers side by side, those of padding, too: (B, 512, 3 D)."""
        (qwen,) = self.encoded(input_ids, rows, learned)
        return Condition(qwen.hidden_states)

    def unconditional(self, count: int) -> Condition:
        """The empty prompt. Of distilled models an empty sequence, which nothing reads."""
        if not self.is_distilled:
            return super().unconditional(count)
        return Condition(torch.zeros(count, 0, self.transformer.config.joint_attention_dim))

    def denoise(
        self, model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        """The transformer with a token per latent. A token's place has four numbers: of the image, its row and column
        in it, and its number in the text.
        """
        text = condition.hidden_states
        height, width = noisy.shape[2:]
        only = torch.arange(1, device=noisy.device)
        predicted = model(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=levels.to(torch.float32),
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=torch.cartesian_prod(only, only, only, torch.arange(text.shape[1], device=noisy.device)),
            img_ids=torch.cartesian_prod(
                only,
                torch.arange(height, device=noisy.device),
                torch.arange(width, device=noisy.device),
                only,
            ),
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2).unflatten(2, (height, width))

    def pipeline(self, sampler: str) -> Flux2KleinPipeline:
        """See `Backbone.pipeline`."""
        return Flux2KleinPipeline(
            scheduler=self.sampler(sampler),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            is_distilled=self.is_distilled,
        )

    def sample_latents(
        self,
        condition: Condition,
        negative: Condition,
        generators: Sequence[torch.Generator],
        config: ReviewConfig,
        side: int,
    ) -> Tensor:
        """See `Backbone.sample_latents`. The pipeline gives them as the VAE does."""
        latents = super().sample_latents(condition, negative, generators, config, side)
        return vae_codec.scaled(self.vae, latents.to(self.word_dtype))
