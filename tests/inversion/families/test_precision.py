from __future__ import annotations

import pytest
import torch

from textinv_ray.inversion.families import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_f": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True, "amx_tile": True}, torch.float32),
        ({"bf16": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_the_fastest_precision_of_a_cpu(capabilities: dict[str, bool], dtype: torch.dtype) -> None:
    assert precision.fastest_cpu_dtype(capabilities) == dtype


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", CUDA, torch.float16),
        ("auto", CPU, torch.bfloat16),
        ("float32", CUDA, torch.float32),
        ("float16", CPU, torch.float16),
    ],
)
def test_the_precision_of_a_device(name: str, device: torch.device, dtype: torch.dtype) -> None:
    assert precision.choose_dtype(name, device, on_cpu=torch.bfloat16) == dtype
    if device == CPU and name == "auto":
        assert precision.choose_dtype(name, device) == torch.float32


@pytest.mark.parametrize("overflows", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("auto", torch.float32, torch.float32),
        ("auto", torch.bfloat16, torch.bfloat16),
        ("float16", torch.float32, torch.float16),
        ("bfloat16", torch.float16, torch.bfloat16),
    ],
)
def test_the_vaes_precision_is_the_models(
    name: str, dtype: torch.dtype, expected: torch.dtype, overflows: bool
) -> None:
    assert precision.choose_vae_dtype(name, CPU, dtype, overflows) == expected


def test_a_vae_that_overflows_has_a_precision_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.float16
    assert precision.choose_vae_dtype("auto", CPU, half, False) == half
    assert precision.choose_vae_dtype("auto", CPU, half, True) == torch.float32
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert precision.choose_vae_dtype("auto", CUDA, half, True) == expected


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, CUDA), (False, CPU)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert precision.choose_device("auto") == expected
        assert precision.choose_device("cpu") == CPU
