"""Stable Diffusion 1.x and 2.x: one CLIP text encoder (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from textinv_ray.config.model_families import STABLE_DIFFUSION
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.diffusion_unet import (
    SAMPLERS,
    UNetBackbone,
    check_parts,
    load_models,
    load_scheduler,
    load_tokenizer,
)
from textinv_ray.inversion.families.precision import choose_vae_dtype
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.families.text_encoder import CLIPEncoder, in_order


@dataclass(eq=False, repr=False)
class StableDiffusion(UNetBackbone):
    """A Stable Diffusion 1.x or 2.x model."""

    family = STABLE_DIFFUSION

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    compiled: CompiledDenoiser | None = None

    def __post_init__(self) -> None:
        (name,) = self.family.encoder_names([self.text_encoder.config.hidden_size])
        self.encoders = in_order([CLIPEncoder(name, self.tokenizer, self.text_encoder)])
        self.freeze()

    @classmethod
    def load(cls, source: Source) -> Backbone:
        """See `Backbone.load`. The safety checker isn't loaded."""
        check_parts(source, cls.family)
        vae_dtype = choose_vae_dtype(source.vae_dtype, source.device, source.dtype, False)
        return cls(
            tokenizer=load_tokenizer(source, "tokenizer"),
            scheduler=load_scheduler(source),
            **load_models(source, StableDiffusionPipeline, {"text_encoder": CLIPTextModel}, vae_dtype),
        )

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """The last hidden states, after the final layer norm: (B, L, D)."""
        (encoded,) = self.encoded(input_ids, rows, learned)
        return Condition(encoded.hidden_states)

    def pipeline(self, sampler: str) -> StableDiffusionPipeline:
        """See `Backbone.pipeline`."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=SAMPLERS[sampler].from_config(self.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
