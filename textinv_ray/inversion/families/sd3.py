"""Stable Diffusion 3 and 3.5: CLIP-L, CLIP-G and T5, and a transformer that learned a flow (Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from textinv_ray.config.model_families import STABLE_DIFFUSION_3, lacks
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.diffusion_unet import load_text_encoder, load_vae
from textinv_ray.inversion.families.flow import FlowBackbone, timesteps_of
from textinv_ray.inversion.families.language_encoder import T5Encoder
from textinv_ray.inversion.families.precision import choose_vae_dtype
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.families.text_encoder import CLIPEncoder, TextEncoder, in_order

T5_TOKENS = 256
"""`max_sequence_length` of the pipeline. A model without T5 has as many zeros."""


@dataclass(eq=False, repr=False)
class StableDiffusion3(FlowBackbone):
    """A Stable Diffusion 3 or 3.5 model, with T5 or without."""

    family = STABLE_DIFFUSION_3

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    tokenizer_3: T5TokenizerFast | None
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    text_encoder_3: T5EncoderModel | None
    transformer: SD3Transformer2DModel
    vae: AutoencoderKL
    scheduler: FlowMatchEulerDiscreteScheduler
    compiled: CompiledDenoiser | None = None

    def __post_init__(self) -> None:
        encoders: list[TextEncoder] = [
            CLIPEncoder(name, tokenizer, model, penultimate=True, pools="projection")
            for name, tokenizer, model in (
                ("clip_l", self.tokenizer, self.text_encoder),
                ("clip_g", self.tokenizer_2, self.text_encoder_2),
            )
        ]
        if self.text_encoder_3 is not None and self.tokenizer_3 is not None:
            encoders.append(T5Encoder("t5xxl", self.tokenizer_3, self.text_encoder_3, length=T5_TOKENS))
        self.encoders = in_order(encoders)
        self.freeze()

    @classmethod
    def load(cls, source: Source) -> Backbone:
        """See `Backbone.load`. A pipeline that was saved without T5 stays without."""
        index = StableDiffusion3Pipeline.load_config(source.path, revision=source.revision)
        without = lacks(index, "text_encoder_3")
        return cls(
            tokenizer=CLIPTokenizer.from_pretrained(**source.part("tokenizer")),
            tokenizer_2=CLIPTokenizer.from_pretrained(**source.part("tokenizer_2")),
            tokenizer_3=None if without else T5TokenizerFast.from_pretrained(**source.part("tokenizer_3")),
            text_encoder=load_text_encoder(source, CLIPTextModelWithProjection, "text_encoder"),
            text_encoder_2=load_text_encoder(source, CLIPTextModelWithProjection, "text_encoder_2"),
            text_encoder_3=None
            if without
            else T5EncoderModel.from_pretrained(dtype=source.dtype, **source.weights("text_encoder_3")),
            transformer=SD3Transformer2DModel.from_pretrained(
                torch_dtype=source.dtype, **source.weights("transformer")
            ),
            vae=load_vae(source, choose_vae_dtype(source.vae_dtype, source.device, source.dtype, True)),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(**source.part("scheduler")),
        )

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """CLIP's states before the last layer, filled up with zeros to T5's width, and T5's behind them along the
        sequence; both CLIPs' pooled states (Esser et al. 2024, section 4).
        """
        first, second, *rest = self.encoded(input_ids, rows, learned)
        clip = torch.cat([first.hidden_states, second.hidden_states], dim=-1)
        clip = F.pad(clip, (0, self.transformer.config.joint_attention_dim - clip.shape[-1]))
        t5 = rest[0].hidden_states if rest else clip.new_zeros(len(clip), T5_TOKENS, clip.shape[-1])
        assert first.pooled is not None
        assert second.pooled is not None
        return Condition(torch.cat([clip, t5], dim=1), torch.cat([first.pooled, second.pooled], dim=-1))

    def denoise(
        self, model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        """The transformer, with timesteps in [0, 1000]."""
        return model(
            hidden_states=noisy,
            timestep=timesteps_of(levels),
            encoder_hidden_states=condition.hidden_states,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]

    def pipeline(self, sampler: str) -> StableDiffusion3Pipeline:
        """See `Backbone.pipeline`."""
        return StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=self.sampler(sampler),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            text_encoder_3=self.text_encoder_3,
            tokenizer_3=self.tokenizer_3,
        )
