"""Recognises a model's family, and loads the model."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import DiffusionPipeline
from pydantic import JsonValue
from safetensors import SafetensorError

from textinv_ray.config.model_families import ModelFamily, family_of
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.flux import Flux
from textinv_ray.inversion.families.flux2_klein import Flux2Klein
from textinv_ray.inversion.families.precision import (
    DTYPES,
    choose_device,
    choose_dtype,
    cpu_capabilities,
    fastest_cpu_dtype,
)
from textinv_ray.inversion.families.sana import Sana
from textinv_ray.inversion.families.sd3 import StableDiffusion3
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.families.source import Source
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.util.errors import UserError

BACKBONES: dict[ModelFamily, type[Backbone]] = {
    backbone.family: backbone
    for backbone in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, Sana, Flux2Klein)
}


def load_backbone(
    path: str,
    *,
    file: str | None = None,
    scheduler_options: Mapping[str, JsonValue] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    vae_dtype: str = "auto",
) -> Backbone:
    """Loads a diffusers pipeline (folder or Hub id) from safetensors files, by its family.

    `file`: a checkpoint in one file, which has the weights in place of `path`. `scheduler_options`: in place of those
    in the scheduler's configuration.
    `device` "auto": CUDA when there is one, else the CPU. `dtype` "auto": on CUDA float16, or bfloat16 for models of
    flow matching; bfloat16 on CPUs with instructions for it, float32 elsewhere. `vae_dtype` "auto": as `dtype`, but not
    float16 where the VAE overflows.
    Raises UserError when it can't be loaded, or isn't a text-to-image model of a known family.
    """
    place = choose_device(device)
    try:
        family = family_of(DiffusionPipeline.load_config(path, revision=revision), path)
        precision = choose_dtype(
            dtype, place, on_cpu=fastest_cpu_dtype(cpu_capabilities()), on_cuda=DTYPES[family.cuda_dtype]
        )
        source = Source(
            path, revision, variant, place, precision, vae_dtype, file, dict(scheduler_options or {})
        )
        return BACKBONES[family].load(source).to(place)
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the model {file or path!r} can't be loaded: {lines[0]}") from error
