"""Flux.1 dev and schnell: T5's states, CLIP-L's pooled state alone, and a transformer of packed latents.

Black Forest Labs 2024. The transformer of `dev` was distilled from one with classifier-free guidance and takes the
scale as an input; `schnell` takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from textinv_ray.config.job import ReviewConfig
from textinv_ray.config.model_families import FLUX
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.diffusion_unet import load_text_encoder, load_vae
from textinv_ray.inversion.families.flow import FlowBackbone
from textinv_ray.inversion.families.language_encoder import T5Encoder
from textinv_ray.inversion.families.precision import choose_vae_dtype
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.families.text_encoder import CLIPEncoder, in_order

T5_TOKENS = {True: 512, False: 256}
"""Tokens of T5 of a model with guidance as an input (dev) and without (schnell)."""
TRAINING_GUIDANCE = 3.5
"""Guidance scale in training, as in diffusers' scripts for Flux.1 dev."""


@dataclass(eq=False, repr=False)
class Flux(FlowBackbone):
    """A Flux.1 model: dev, schnell, or one that was trained on from them."""

    family = FLUX
    patch = 2

    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    scheduler: FlowMatchEulerDiscreteScheduler
    compiled: CompiledDenoiser | None = None

    def __post_init__(self) -> None:
        length = T5_TOKENS[self.is_guided]
        self.encoders = in_order(
            [
                CLIPEncoder("clip_l", self.tokenizer, self.text_encoder, pools="end"),
                T5Encoder("t5xxl", self.tokenizer_2, self.text_encoder_2, length=length),
            ]
        )
        self.freeze()

    @classmethod
    def load(cls, source: Source) -> Backbone:
        """See `Backbone.load`."""
        return cls(
            tokenizer=CLIPTokenizer.from_pretrained(**source.part("tokenizer")),
            tokenizer_2=T5TokenizerFast.from_pretrained(**source.part("tokenizer_2")),
            text_encoder=load_text_encoder(source, CLIPTextModel, "text_encoder"),
            text_encoder_2=T5EncoderModel.from_pretrained(
                dtype=source.dtype, **source.weights("text_encoder_2")
            ),
            transformer=FluxTransformer2DModel.from_pretrained(
                torch_dtype=source.dtype, **source.weights("transformer")
            ),
            vae=load_vae(source, choose_vae_dtype(source.vae_dtype, source.device, source.dtype, True)),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(**source.part("scheduler")),
        )

    @property
    def is_guided(self) -> bool:
        """Whether the guidance scale is an input."""
        return bool(self.transformer.config.guidance_embeds)

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """T5's last states, and CLIP's last state of the end token."""
        clip, t5 = self.encoded(input_ids, rows, learned)
        return Condition(t5.hidden_states, clip.pooled)

    def unconditional(self, count: int) -> Condition:
        """An empty sequence, which nothing reads: there is no classifier-free guidance."""
        return Condition(torch.zeros(count, 0, self.transformer.config.joint_attention_dim))

    def denoise(
        self, model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        """The transformer with packed latents, and the places of its tokens in the picture."""
        count, _, height, width = noisy.shape
        guidance = (
            levels.new_full((count,), TRAINING_GUIDANCE, dtype=torch.float32) if self.is_guided else None
        )
        text = condition.hidden_states
        rows, columns = torch.meshgrid(
            torch.arange(height // 2, device=noisy.device),
            torch.arange(width // 2, device=noisy.device),
            indexing="ij",
        )
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
        predicted = model(
            hidden_states=pack(noisy),
            timestep=levels.to(torch.float32),
            guidance=guidance,
            pooled_projections=condition.pooled,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=places.to(noisy.dtype),
            return_dict=False,
        )[0]
        return unpack(predicted, height, width)

    def pipeline(self, sampler: str) -> FluxPipeline:
        """See `Backbone.pipeline`."""
        return FluxPipeline(
            transformer=self.transformer,
            scheduler=self.sampler(sampler),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
        )

    def pipeline_inputs(self, condition: Condition, negative: Condition) -> dict[str, object]:
        """Without `negative`."""
        return {"prompt_embeds": condition.hidden_states, "pooled_prompt_embeds": condition.pooled}

    def sample_latents(
        self,
        condition: Condition,
        negative: Condition,
        generators: Sequence[torch.Generator],
        config: ReviewConfig,
        side: int,
    ) -> Tensor:
        """See `Backbone.sample_latents`: unpacked."""
        latents = super().sample_latents(condition, negative, generators, config, side)
        return unpack(latents, side // self.vae_factor, side // self.vae_factor)


def pack(latents: Tensor) -> Tensor:
    """Squares of 2 x 2 latents as tokens: (B, C, h, w) -> (B, h/2 w/2, 4 C)."""
    count, channels, height, width = latents.shape
    squares = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(count, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`: (B, h/2 w/2, 4 C) -> (B, C, h, w)."""
    count, _, size = tokens.shape
    squares = tokens.reshape(count, height // 2, width // 2, size // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(count, size // 4, height, width)
