"""The section `model` of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from textinv_ray.config.training import Strict


class ModelConfig(Strict):
    """The frozen diffusion model that words are learned for."""

    path: str = Field("mini-sd", min_length=1)
    """A bundled name (`mini-sd`), a folder, an fsspec URI (`s3://...`), a Hugging Face Hub id, or a checkpoint in one
    file (`model.safetensors`, its path or URI)."""
    config: str | None = Field(None, min_length=1)
    """Of a checkpoint in one file: its configuration and tokenizers in diffusers' format, a folder, URI or Hub id;
    null: those of Stable Diffusion 1, 2 or XL in this package."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the model predicts; null: what its configuration or its file says."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    variant: str | None = None
    """Weights variant of a Hub id or folder, such as `fp16`."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the frozen model. `auto`: on CUDA float16, or bfloat16 for models that are published in it (SD 3,
    Flux, Sana); bfloat16 on CPUs with instructions for it (AMX, AVX512_BF16), float32 elsewhere. Words are always
    float32."""
    vae_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the VAE. `auto`: as `dtype`; where a VAE of SDXL overflows in float16, bfloat16 or float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models. `auto`: the worker's GPU when it has one, else the CPU."""
