"""Where a model is loaded from, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from pydantic import JsonValue


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from, and how."""

    path: str
    """A folder in diffusers' format or a Hub id."""
    revision: str | None
    variant: str | None
    """Of weights files, such as `fp16`."""
    device: torch.device
    dtype: torch.dtype
    vae_dtype: str
    """A name of `precision.DTYPES`, or "auto"."""
    file: str | None = None
    """A checkpoint in one file, which has the weights; then `path` has the configuration and the tokenizers."""
    scheduler_options: Mapping[str, JsonValue] = field(default_factory=dict)
    """What differs from the configuration of the scheduler."""

    def part(self, name: str) -> dict[str, str | None]:
        """Arguments of `from_pretrained` for a part of the pipeline without weights."""
        return {
            "pretrained_model_name_or_path": self.path,
            "subfolder": name,
            "revision": self.revision,
        }

    def weights(self, name: str) -> dict[str, str | bool | None]:
        """Arguments of `from_pretrained` for a part with weights. Only safetensors files are read."""
        return {**self.part(name), "variant": self.variant, "use_safetensors": True}
