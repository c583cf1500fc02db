"""Device and precision of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto": CUDA when there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def choose_dtype(
    name: str,
    device: torch.device,
    on_cpu: torch.dtype = torch.float32,
    on_cuda: torch.dtype = torch.float16,
) -> torch.dtype:
    """The precision of this name; "auto": `on_cuda` on CUDA, `on_cpu` elsewhere."""
    if name == "auto":
        return on_cuda if device.type == "cuda" else on_cpu
    return DTYPES[name]


def choose_vae_dtype(name: str, device: torch.device, dtype: torch.dtype, overflows: bool) -> torch.dtype:
    """The precision of the VAE. "auto": `dtype`, that of the other models, unless the VAE overflows in float16.

    `overflows`: whether it does (`force_upcast` of SDXL's VAE). Then it is bfloat16 where the device computes in it,
    else float32.
    """
    if name != "auto":
        return DTYPES[name]
    if dtype != torch.float16 or not overflows:
        return dtype
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def fastest_cpu_dtype(capabilities: Mapping[str, object]) -> torch.dtype:
    """bfloat16 where the CPU has instructions that multiply in it (twice the speed of float32), else float32.

    capabilities: names of instruction sets and whether the CPU has them, as from `torch.cpu.get_capabilities()`.
    """
    has_bfloat16 = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if has_bfloat16 else torch.float32


def cpu_capabilities() -> Mapping[str, object]:
    """What torch knows of this CPU; empty in versions of torch that can't tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
