"""The frozen diffusion model: loading, encoding of prompts with learned words, noise prediction, loss, latents."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from textinv_ray.inversion.compiled import CompiledUNet
from textinv_ray.util.errors import UserError

PLAIN_ATTENTION_MAX_SIDE = 32
"""Largest side of the latents for which the UNet uses unfused attention on a CPU: there the backward pass of torch's
fused attention is slower than two matrix products and a softmax, which keep the attention weights in memory."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(eq=False, repr=False)
class Backbone:
    """A Stable Diffusion 1.x / 2.x model with frozen weights: no method here changes a bit of them."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    """The forward process (Ho et al. 2020, eq. (4)). Samplers are built from its configuration."""
    compiled: CompiledUNet | None = None
    """Predicts noise in place of `unet` where gradients are needed; see `compiled.py`."""
    _encoder_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        prediction = self.scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"models that predict {prediction!r} are not supported")
        for model in (self.text_encoder, self.unet, self.vae):
            model.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Backbone:
        """Loads a diffusers pipeline (folder or Hub id) from safetensors files, without its safety checker.

        `device` "auto": CUDA when there is one, else the CPU. `dtype` "auto": float16 on CUDA, bfloat16 on CPUs with
        instructions for it, float32 elsewhere.
        Raises UserError when it can't be loaded, or isn't a text-to-image Stable Diffusion 1.x / 2.x model.
        """
        place = choose_device(device)
        precision = choose_dtype(dtype, place, on_cpu=fastest_cpu_dtype(_cpu_capabilities()))
        source = {"pretrained_model_name_or_path": path, "revision": revision}
        weights = {**source, "variant": variant, "use_safetensors": True}
        try:
            unet_config = UNet2DConditionModel.load_config(subfolder="unet", **source)
            if unet_config.get("addition_embed_type") or unet_config["in_channels"] != 4:
                raise UserError(f"{path!r} is not a text-to-image Stable Diffusion 1.x or 2.x model")
            backbone = cls(
                tokenizer=CLIPTokenizer.from_pretrained(subfolder="tokenizer", **source),
                text_encoder=CLIPTextModel.from_pretrained(
                    subfolder="text_encoder", dtype=precision, **weights
                ),
                unet=UNet2DConditionModel.from_pretrained(subfolder="unet", torch_dtype=precision, **weights),
                vae=AutoencoderKL.from_pretrained(subfolder="vae", torch_dtype=precision, **weights),
                scheduler=DDPMScheduler.from_pretrained(subfolder="scheduler", **source),
            )
        except (OSError, ValueError) as error:
            message = str(error).strip().splitlines()[0]
            raise UserError(f"the model {path!r} can't be loaded: {message}") from error
        if place.type == "cpu":
            if precision == torch.bfloat16:  # unfused attention: not faster in float32, less exact in float16
                backbone.text_encoder.set_attn_implementation("eager")
            if unet_config["sample_size"] <= PLAIN_ATTENTION_MAX_SIDE:
                backbone.unet.set_attn_processor(AttnProcessor())
        return backbone.to(place)

    def to(self, device: torch.device | str) -> Backbone:
        """Moves the model's weights, and returns this backbone."""
        for model in (self.text_encoder, self.unet, self.vae):
            model.to(device)
        return self

    @property
    def checkpoints_activations(self) -> bool:
        """Whether the backward pass recomputes most of the UNet's activations."""
        return bool(self.unet.is_gradient_checkpointing)

    def checkpoint_activations(self) -> None:
        """Turns activation checkpointing of the UNet on (Chen et al. 2016): less memory, slower backward passes.

        Gradients don't change; where kernels are deterministic, not by a bit.
        """
        # The UNet draws no random numbers (no dropout in eval mode), so no generator state is saved
        self.unet.enable_gradient_checkpointing(
            partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        )

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen weights."""
        return self.unet.dtype

    @property
    def word_dtype(self) -> torch.dtype:
        """Precision of words, optimizer state, latents and losses: that of the model, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def resolution(self) -> int:
        """Side of the model's square images in pixels."""
        return int(self.unet.config.sample_size) * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def embedding_dim(self) -> int:
        """D, the length of a word vector."""
        return int(self.text_encoder.get_input_embeddings().embedding_dim)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the frozen embedding table. Token ids from here on stand for learned vectors."""
        return int(self.text_encoder.get_input_embeddings().num_embeddings)

    @cached_property
    def vocabulary_mean(self) -> Tensor:
        """Mean of the frozen embedding table: (D,) in `word_dtype`."""
        return self.text_encoder.get_input_embeddings().weight.data.mean(dim=0, dtype=self.word_dtype)

    @cached_property
    def vocabulary_norm(self) -> float:
        """Mean Euclidean norm of the rows of the frozen embedding table."""
        table = self.text_encoder.get_input_embeddings().weight.data
        return float(torch.linalg.vector_norm(table, dim=1, dtype=self.word_dtype).mean())

    @property
    def max_tokens(self) -> int:
        """L, the length in tokens that prompts are padded or cut to, with the begin and end tokens."""
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    def encode_prompts(self, input_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """c(y): the text encoder's hidden states of prompts with learned words.

        An id `vocabulary_size` + r stands for row r of `rows`. The frozen embedding table isn't resized: a forward
        hook replaces its output at these ids, so gradients reach `rows` alone.

        input_ids: int64 (B, L). rows: (R, D). Returns (B, L, D) in the model's dtype.
        """
        if rows is None:
            return self.text_encoder(input_ids).last_hidden_state
        learned = input_ids >= self.vocabulary_size
        embeddings = F.embedding((input_ids - self.vocabulary_size).clamp(min=0), rows).to(self.dtype)

        def replace(_module: nn.Module, _arguments: object, frozen: Tensor) -> Tensor:
            return torch.where(learned[..., None], embeddings, frozen)

        table = self.text_encoder.get_input_embeddings()
        with self._encoder_lock:  # the hook must not act on a call by another thread, such as a review
            hook = table.register_forward_hook(replace)
            try:
                # The stand-in's embedding is never used. The end token doesn't disturb the encoder's pooling.
                stand_in = input_ids.masked_fill(learned, self.tokenizer.eos_token_id)
                return self.text_encoder(stand_in).last_hidden_state
            finally:
                hook.remove()

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        """eps_theta(z_t, t, c), or v_theta(z_t, t, c) with v-prediction.

        noisy_latents: (B, C, h, w). timesteps: int64 (B,). hidden_states: (B, L, D). Returns (B, C, h, w) in the
        model's dtype.
        """
        noisy_latents = noisy_latents.to(self.dtype)
        if self.compiled and torch.is_grad_enabled() and len(timesteps) <= self.compiled.samples:
            return self.compiled(noisy_latents, timesteps, hidden_states)
        return self.unet(noisy_latents, timesteps, hidden_states, return_dict=False)[0]

    def denoising_loss(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, hidden_states: Tensor
    ) -> Tensor:
        """||eps - eps_theta(z_t, t, c)||^2, divided by C h w, for each sample: Gal et al. 2022, eq. (2).

        With v-prediction the target is v_t = alpha_t eps - sigma_t z (Salimans and Ho 2022, section 4).
        latents (z), noise (eps): (B, C, h, w) in `word_dtype`. timesteps: int64 (B,). hidden_states: (B, L, D).
        Returns (B,) in `word_dtype`.
        """
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
        prediction = self.predict(noisy_latents, timesteps, hidden_states)
        if self.scheduler.config.prediction_type == "v_prediction":
            noise = self.scheduler.get_velocity(latents, noise, timesteps)
        return F.mse_loss(prediction.to(noise.dtype), noise, reduction="none").mean(dim=(1, 2, 3))

    @torch.no_grad()
    def latent_moments(self, images: np.ndarray, batch_size: int = 16) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior q(z | x), shifted and scaled as the UNet expects z.

        images: uint8 (N, S, S, 3). Returns two tensors (N, C, h, w) in `word_dtype` on the model's device.
        """
        means, stds = [], []
        for start in range(0, len(images), batch_size):
            pixels = torch.tensor(images[start : start + batch_size], device=self.device)
            pixels = (pixels.permute(0, 3, 1, 2).to(self.word_dtype) / 127.5 - 1).to(self.dtype)
            posterior = self.vae.encode(pixels).latent_dist
            means.append(posterior.mean.to(self.word_dtype))
            stds.append(posterior.std.to(self.word_dtype))
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        return (torch.cat(means) - shift) * scale, torch.cat(stds) * scale


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto": CUDA when there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def choose_dtype(name: str, device: torch.device, on_cpu: torch.dtype = torch.float32) -> torch.dtype:
    """The precision of this name; "auto": float16 on CUDA, `on_cpu` elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else on_cpu
    return DTYPES[name]


def fastest_cpu_dtype(capabilities: Mapping[str, object]) -> torch.dtype:
    """bfloat16 where the CPU has instructions that multiply in it (twice the speed of float32), else float32.

    capabilities: names of instruction sets and whether the CPU has them, as from `torch.cpu.get_capabilities()`.
    """
    has_bfloat16 = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _cpu_capabilities() -> Mapping[str, object]:
    """What torch knows of this CPU; empty in versions of torch that can't tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
