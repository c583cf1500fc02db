"""Loads the networks of a checkpoint in one file, by diffusers' converters from the original layouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from transformers import PreTrainedModel

from textinv_ray.inversion.families.source import Source


def load(
    source: Source,
    file: str,
    pipeline: type[DiffusionPipeline],
    encoders: Sequence[str],
    vae_dtype: torch.dtype,
) -> dict[str, ModelMixin | PreTrainedModel]:
    """The UNet, the VAE and the text encoders of a file, by the names of the parts. The file is mapped to memory.

    encoders: names of the text encoders. Raises OSError or ValueError when it can't be read, or weights are missing.
    """
    parts = ("unet", "vae", *encoders)
    index = pipeline.load_config(source.path, revision=source.revision)
    others = {name for name, value in index.items() if isinstance(value, list)} - {*parts}
    try:
        vae = AutoencoderKL.from_single_file(
            file,
            config=source.path,
            config_revision=source.revision,
            subfolder="vae",
            torch_dtype=vae_dtype,
        )
        loaded = pipeline.from_single_file(
            file,
            config=source.path,
            revision=source.revision,
            torch_dtype=source.dtype,
            vae=vae,
            **dict.fromkeys(others),  # not loaded
        )
    except NotImplementedError:  # of a tensor without values, when the model moves to its device
        raise ValueError("the file has no weights for a part of its UNet or VAE") from None
    except KeyError as error:
        raise ValueError(f"the file has no tensor {error}") from None
    models = {name: getattr(loaded, name) for name in parts}
    for part, model in models.items():
        missing = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
        if missing is not None:
            raise ValueError(f"the file has no weights for {part}.{missing}")
    return models
