"""What Stable Diffusion's families have in common: a UNet that predicts noise or velocity at discrete timesteps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    ModelMixin,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from textinv_ray.config import model_families
from textinv_ray.config.model_families import ModelFamily
from textinv_ray.config.training import TrainingConfig
from textinv_ray.inversion.families import single_file
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.noise_levels import snr_weights
from textinv_ray.model_files import clip_tokenizer

PLAIN_ATTENTION_MAX_SIDE = 32
"""Largest side of the latents for which the UNet uses unfused attention on a CPU: there the backward pass of torch's
fused attention is slower than two matrix products and a softmax, which keep the attention weights in memory."""
SAMPLERS = {
    "dpmsolver++": DPMSolverMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
}
"""Built from the configuration of the forward process."""


class UNetBackbone(Backbone):
    """A backbone with a UNet and the forward process of Ho et al. 2020, eq. (4)."""

    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    """The forward process. Samplers are built from its configuration."""

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """The UNet."""
        return self.unet

    def shift(self, size: tuple[int, int]) -> float:
        """None: timesteps were uniform."""
        return 1.0

    def as_levels(self, levels: Tensor) -> Tensor:
        """Timesteps: int64, in [0, number of training timesteps)."""
        count = int(self.scheduler.config.num_train_timesteps)
        return (levels * count).long().clamp(max=count - 1)

    def loss_weights(self, levels: Tensor, training: TrainingConfig) -> Tensor | None:
        """By the signal-to-noise ratio alpha_t^2 / sigma_t^2."""
        if training.loss_weight == "none":
            return None
        signal = self.scheduler.alphas_cumprod.to(levels.device, self.word_dtype)[levels]
        predicts_v = self.scheduler.config.prediction_type == "v_prediction"
        return snr_weights(signal / (1 - signal), training, predicts_v=predicts_v)

    def corrupt(self, latents: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """z_t of Ho et al. 2020, eq. (4); the target is eps, or v_t = alpha_t eps - sigma_t z (Salimans and Ho 2022,
        section 4).
        """
        noisy = self.scheduler.add_noise(latents, noise, levels)
        if self.scheduler.config.prediction_type == "v_prediction":
            return noisy, self.scheduler.get_velocity(latents, noise, levels)
        return noisy, noise

    def denoise(
        self, model: Callable[..., tuple[Tensor, ...]], noisy: Tensor, levels: Tensor, condition: Condition
    ) -> Tensor:
        """The UNet with cross-attention to the hidden states."""
        return model(noisy, levels, condition.hidden_states, return_dict=False)[0]


def load_tokenizer(source: Source, name: str) -> CLIPTokenizer:
    """A tokenizer of a pipeline."""
    return clip_tokenizer.load_tokenizer(source.path, name, source.revision)


def load_scheduler(source: Source) -> DDPMScheduler:
    """The forward process of a pipeline."""
    return DDPMScheduler.from_pretrained(**source.part("scheduler"), **source.scheduler_options)


def check_parts(source: Source, family: ModelFamily) -> None:
    """Raises UserError when the UNet or the scheduler compute something else than those of the family."""
    unet = UNet2DConditionModel.load_config(**source.part("unet"))
    scheduler = DDPMScheduler.load_config(**source.part("scheduler"))
    model_families.check_parts(
        family, unet, {**scheduler, **source.scheduler_options}, source.file or source.path
    )


def load_models(
    source: Source,
    pipeline: type[DiffusionPipeline],
    encoders: Mapping[str, type[PreTrainedModel]],
    vae_dtype: torch.dtype,
) -> dict[str, ModelMixin | PreTrainedModel]:
    """The UNet, the VAE and the text encoders of a pipeline, by the names of the parts.

    encoders: class of each text encoder by its name. Raises OSError or ValueError when weights are missing.
    """
    if source.file is None:
        unet = UNet2DConditionModel.from_pretrained(torch_dtype=source.dtype, **source.weights("unet"))
        models = {name: load_text_encoder(source, kind, name) for name, kind in encoders.items()}
        models |= {"unet": unet, "vae": load_vae(source, vae_dtype)}
    else:
        models = single_file.load(source, source.file, pipeline, [*encoders], vae_dtype)
        for name in encoders:
            set_fast_attention(models[name], source)
    unet = models["unet"]
    if source.device.type == "cpu" and unet.config.sample_size <= PLAIN_ATTENTION_MAX_SIDE:
        unet.set_attn_processor(AttnProcessor())
    return models


def load_vae(source: Source, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE of a pipeline."""
    return AutoencoderKL.from_pretrained(torch_dtype=dtype, **source.weights("vae"))


def load_text_encoder(source: Source, kind: type[PreTrainedModel], name: str) -> PreTrainedModel:
    """A text encoder of a pipeline, with the attention that is fastest on the device."""
    encoder = kind.from_pretrained(dtype=source.dtype, **source.weights(name))
    set_fast_attention(encoder, source)
    return encoder


def set_fast_attention(encoder: PreTrainedModel, source: Source) -> None:
    """Sets the attention of a text encoder that is fastest on the device."""
    if source.device.type == "cpu" and source.dtype == torch.bfloat16:
        encoder.set_attn_implementation("eager")  # not faster in float32, less exact in float16
