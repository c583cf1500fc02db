"""Stable Diffusion XL and its descendants: two text encoders, a pooled prompt and image sizes (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from textinv_ray.config.model_families import STABLE_DIFFUSION_XL
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
class StableDiffusionXL(UNetBackbone):
    """A Stable Diffusion XL model (base; not the refiner)."""

    family = STABLE_DIFFUSION_XL

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    force_zeros_for_empty_prompt: bool = True
    """Whether guidance without a negative prompt takes zeros. Else it takes the empty prompt."""
    compiled: CompiledDenoiser | None = None

    def __post_init__(self) -> None:
        self.encoders = in_order(
            [
                CLIPEncoder("clip_l", self.tokenizer, self.text_encoder, penultimate=True),
                CLIPEncoder(
                    "clip_g", self.tokenizer_2, self.text_encoder_2, penultimate=True, pools="projection"
                ),
            ]
        )
        self.freeze()

    @classmethod
    def load(cls, source: Source) -> Backbone:
        """See `Backbone.load`. The VAE gets a precision of its own where it overflows in float16."""
        check_parts(source, cls.family)
        index = StableDiffusionXLPipeline.load_config(source.path, revision=source.revision)
        overflows = AutoencoderKL.load_config(**source.part("vae")).get("force_upcast", True)
        vae_dtype = choose_vae_dtype(source.vae_dtype, source.device, source.dtype, overflows)
        encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        return cls(
            tokenizer=load_tokenizer(source, "tokenizer"),
            tokenizer_2=load_tokenizer(source, "tokenizer_2"),
            scheduler=load_scheduler(source),
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
            **load_models(source, StableDiffusionXLPipeline, encoders, vae_dtype),
        )

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """Both encoders' states before their last layer, and the second's projected state of the end token."""
        first, second = self.encoded(input_ids, rows, learned)
        hidden_states = torch.cat([first.hidden_states, second.hidden_states], dim=-1)
        if time_ids is None:
            whole = [self.resolution, self.resolution, 0, 0, self.resolution, self.resolution]
            time_ids = torch.tensor(whole, device=self.device).expand(len(input_ids), -1)
        return Condition(hidden_states, second.pooled, time_ids)

    def unconditional(self, count: int) -> Condition:
        """Zeros, or the empty prompt (`force_zeros_for_empty_prompt`)."""
        empty = super().unconditional(count)
        if not self.force_zeros_for_empty_prompt:
            return empty
        assert empty.pooled is not None
        return empty._replace(
            hidden_states=torch.zeros_like(empty.hidden_states), pooled=torch.zeros_like(empty.pooled)
        )

    def denoise(
        self, model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        """The UNet, with pooled prompts and time ids beside the hidden states."""
        added = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
        return model(noisy, levels, condition.hidden_states, added_cond_kwargs=added, return_dict=False)[0]

    def pipeline(self, sampler: str) -> StableDiffusionXLPipeline:
        """See `Backbone.pipeline`."""
        return StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.unet,
            scheduler=SAMPLERS[sampler].from_config(self.scheduler.config),
            add_watermarker=False,
        )
