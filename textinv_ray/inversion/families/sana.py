"""Sana: Gemma 2 as the text encoder, a linear transformer, an autoencoder that makes sides 32 times smaller.

Xie et al. 2024, "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Model, GemmaTokenizerFast

from textinv_ray.config.model_families import SANA
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.compiled import CompiledDenoiser
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.flow import FlowBackbone, timesteps_of
from textinv_ray.inversion.families.language_encoder import GemmaEncoder
from textinv_ray.inversion.families.precision import choose_vae_dtype
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.families.text_encoder import in_order

INSTRUCTION = "\n".join(
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
)
"""What stands before every prompt: the pipeline's own default, so that words fit plain scripts."""


@dataclass(eq=False, repr=False)
class Sana(FlowBackbone):
    """A Sana or Sana 1.5 model (not Sana Sprint)."""

    family = SANA

    tokenizer: GemmaTokenizerFast
    text_encoder: Gemma2Model
    transformer: SanaTransformer2DModel
    vae: AutoencoderDC
    scheduler: DPMSolverMultistepScheduler
    compiled: CompiledDenoiser | None = None

    def __post_init__(self) -> None:
        self.encoders = in_order(
            [GemmaEncoder("gemma", self.tokenizer, self.text_encoder, instruction=INSTRUCTION)]
        )
        self.freeze()

    @classmethod
    def load(cls, source: Source) -> Backbone:
        """See `Backbone.load`. Some models have a scheduler of another kind; its shift counts."""
        config = DPMSolverMultistepScheduler.load_config(**source.part("scheduler"))
        return cls(
            tokenizer=GemmaTokenizerFast.from_pretrained(**source.part("tokenizer")),
            text_encoder=Gemma2Model.from_pretrained(dtype=source.dtype, **source.weights("text_encoder")),
            transformer=SanaTransformer2DModel.from_pretrained(
                torch_dtype=source.dtype, **source.weights("transformer")
            ),
            vae=AutoencoderDC.from_pretrained(
                torch_dtype=choose_vae_dtype(source.vae_dtype, source.device, source.dtype, True),
                **source.weights("vae"),
            ),
            scheduler=DPMSolverMultistepScheduler.from_config(
                config, flow_shift=config.get("flow_shift") or config.get("shift") or 1.0
            ),
        )

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """Gemma's last states, and which of them are of tokens."""
        (gemma,) = self.encoded(input_ids, rows, learned)
        return Condition(gemma.hidden_states, mask=gemma.mask)

    def denoise(
        self, model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        """The transformer, with timesteps in [0, 1000] times its `timestep_scale`."""
        return model(
            noisy,
            encoder_hidden_states=condition.hidden_states,
            encoder_attention_mask=condition.mask,
            timestep=timesteps_of(levels) * self.transformer.config.timestep_scale,
            return_dict=False,
        )[0]

    def pipeline(self, sampler: str) -> SanaPipeline:
        """See `Backbone.pipeline`."""
        return SanaPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=self.transformer,
            scheduler=self.sampler(sampler),
        )

    def pipeline_inputs(self, condition: Condition, negative: Condition) -> dict[str, object]:
        """With masks. Sides stay as they are asked for."""
        return {
            **super().pipeline_inputs(condition, negative),
            "prompt_attention_mask": condition.mask,
            "negative_prompt": None,
            "negative_prompt_attention_mask": negative.mask,
            "use_resolution_binning": False,
        }
