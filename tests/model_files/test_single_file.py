"""Checkpoints in one file are recognised by their headers, and others are refused with what they are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from tests.support import single_files
from textinv_ray.config.model_families import UnsupportedModelError
from textinv_ray.model_files.header import Header, TensorInfo
from textinv_ray.model_files.single_file import (
    SD1,
    SD2,
    SDXL,
    UNET,
    Layout,
    SingleFile,
    is_single_file,
    recognise,
)
from textinv_ray.util.errors import UserError

LAYOUTS = {"stable-diffusion-1": SD1, "stable-diffusion-2": SD2, "stable-diffusion-xl": SDXL}
V_PRED = torch.zeros(0)


def header_of(tensors: Mapping[str, Tensor], **metadata: str) -> Header:
    infos = {name: TensorInfo(tuple(value.shape), 0, 0) for name, value in tensors.items()}
    return Header(infos, {f"modelspec.{key}": value for key, value in metadata.items()}, 0)


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, Tensor]]:
    """All tensors of checkpoints of the real architectures, without values."""
    return {name: single_files.real(name) for name in LAYOUTS}


@pytest.mark.parametrize(("name", "layout"), LAYOUTS.items())
def test_the_known_layouts(name: str, layout: Layout, real: dict[str, dict[str, Tensor]]) -> None:
    assert recognise(header_of(real[name]), "x") == SingleFile(layout, None, False)


@pytest.mark.parametrize(
    ("name", "unet", "encoders"),
    [
        ("stable-diffusion-1", 859_520_964, 123_060_480),
        ("stable-diffusion-2", 865_910_724, 340_387_840 + 1024**2),  # with the projection, which isn't read
        ("stable-diffusion-xl", 2_567_463_684, 123_060_480 + 694_659_840),
    ],
)
def test_the_configurations_give_the_published_numbers_of_weights(
    name: str, unet: int, encoders: int, real: dict[str, dict[str, Tensor]]
) -> None:
    """Of the UNet, the text encoders and the VAE."""
    counts = {"unet": 0, "encoders": 0, "vae": 0}
    for key, value in real[name].items():
        part = (
            "unet" if key.startswith(UNET) else "vae" if key.startswith("first_stage_model.") else "encoders"
        )
        counts[part] += value.numel()
    assert counts == {"unet": unet, "encoders": encoders, "vae": 83_653_863}


def without(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (9, "an inpainting model"),
        (8, "an InstructPix2Pix model"),
        (7, "an upscaler"),
        (5, "a depth-to-image model"),
    ],
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_other_tasks(name: str, channels: int, message: str, real: dict[str, dict[str, Tensor]]) -> None:
    key = f"{UNET}input_blocks.0.0.weight"
    header = header_of({**real[name], key: torch.zeros(320, channels, 3, 3)})
    with pytest.raises(
        UnsupportedModelError, match=f"^the model 'x' is {message}; words can be learned for whole"
    ):
        recognise(header, "x")


def meta(*shape: int) -> Tensor:
    return torch.zeros(shape, device="meta")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": meta(9, 3)},
            "a model of Stable Diff.* 3",
        ),
        (
            {"double_blocks.0.img_attn.norm.key_norm.scale": meta(128)},
            "a model of Flux or one of its descendants",
        ),
        ({"single_stream_modulation.lin.weight": meta(9, 9)}, r"a model of Flux\.2"),
        (
            {"lora_unet_down_blocks_0.lora_down.weight": meta(4, 320)},
            "a LoRA or the like, an addition to a model",
        ),
        ({"base_model.model.unet.x.lora_A.weight": meta(4, 320)}, "a LoRA or the like"),
        ({"lycoris_x.hada_w1_a": meta(4, 320)}, "a LoRA or the like"),
        ({"clip_l": meta(4, 768), "clip_g": meta(4, 1280)}, r"a file of words \(an embedding\)"),
        ({"<cat>": meta(1, 768)}, r"a file of words \(an embedding\)"),
        ({"decoder.conv_in.weight": meta(512, 4, 3, 3)}, "a VAE alone"),
        ({"first_stage_model.decoder.conv_in.weight": meta(512, 4, 3, 3)}, "a VAE alone"),
        (
            {f"text_model.encoder.layers.{n}.mlp.fc1.weight": meta(9, 3, 1) for n in range(9)},
            "a text encoder alone",
        ),
        ({"down_blocks.0.resnets.0.conv1.weight": meta(320, 320, 3, 3)}, "a UNet alone"),
        ({"control_model.time_embed.0.weight": meta(9, 9)}, "a ControlNet"),
        ({"model.diffusion_model.cap_embedder.0.weight": meta(9, 9)}, "a model of Z-Image or Lumina"),
        ({"clip_txt_mapper.weight": meta(9, 9)}, "a model of Stable Cascade"),
        ({"down_blocks.0.motion_modules.0.x": meta(9, 9)}, "a video model or a motion module"),
        ({"model.diffusion_model.blocks.0.x": meta(9, 9, 1)}, "a model of an unknown kind"),
        (
            {f"abc.{number}": meta(3, 3, 3) for number in range(9)},
            r"of an unknown kind \(its keys are like 'abc.0'\)",
        ),
        ({}, "empty"),
    ],
)
def test_other_files(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^the model 'x' is {message}"):
        recognise(header_of(tensors), "x")


def test_parts_of_a_checkpoint(real: dict[str, dict[str, Tensor]]) -> None:
    xl = real["stable-diffusion-xl"]
    refiner = without(xl, "conditioner.") | {"conditioner.embedders.0.model.ln_final.bias": meta(1280)}
    for tensors, message in (
        (refiner, "is SDXL's refiner"),
        (without(xl, "conditioner."), "no text encoder in a known layout"),
        (without(xl, "conditioner.embedders.1."), "no text encoder in a known layout"),
        (without(xl, "first_stage_model."), "has no VAE"),
        ({**xl, "edm_mean": meta(1, 4, 1, 1)}, "an EDM model"),
        ({**xl, "edm_vpred.sigma_max": meta()}, "an EDM model"),
        ({**real["stable-diffusion-2"], "noise_augmentor.betas": meta(9)}, "an unCLIP model"),
        (xl | {f"{UNET}middle_block.1.transformer_blocks.9.attn2.to_k.weight": meta(9, 9)}, "model.config"),
        (without(xl, f"{UNET}middle_block.1.transformer_blocks.9."), r"isn't there.*model\.config"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            recognise(header_of(tensors), "x")


def test_other_sizes_need_a_configuration(real: dict[str, dict[str, Tensor]]) -> None:
    """A distilled SDXL has fewer layers: with its configuration it is as good as any."""
    distilled = without(real["stable-diffusion-xl"], f"{UNET}middle_block.1.transformer_blocks.9.")
    assert recognise(header_of(distilled), "x", any_shapes=True).layout is SDXL


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "zero_snr"),
    [
        ({}, {}, None, False),
        ({"v_pred": V_PRED}, {}, "v_prediction", False),
        ({"v_pred": V_PRED, "ztsnr": V_PRED}, {}, "v_prediction", True),
        ({}, {"prediction_type": "v"}, "v_prediction", False),
        ({}, {"prediction_type": "epsilon"}, "epsilon", False),
        ({"v_pred": V_PRED}, {"prediction_type": "epsilon"}, "v_prediction", False),
    ],
)
def test_what_it_predicts(
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    prediction: str | None,
    zero_snr: bool,
    real: dict[str, dict[str, Tensor]],
) -> None:
    header = header_of(real["stable-diffusion-xl"] | tensors, **metadata)
    assert recognise(header, "x") == SingleFile(SDXL, prediction, zero_snr)


def test_another_prediction_is_refused(real: dict[str, dict[str, Tensor]]) -> None:
    header = header_of(real["stable-diffusion-xl"], prediction_type="rectified_flow")
    with pytest.raises(UnsupportedModelError, match="predicts 'rectified_flow'"):
        recognise(header, "x")


@pytest.mark.parametrize(
    ("layout", "stated", "given", "folder"),
    [
        (SD1, None, None, "stable-diffusion-1"),
        (SD2, "v_prediction", None, "stable-diffusion-2"),
        (SD2, None, "epsilon", "stable-diffusion-2-base"),
        (SD2, "v_prediction", "epsilon", "stable-diffusion-2-base"),
        (SDXL, "v_prediction", None, "stable-diffusion-xl"),
    ],
)
def test_the_configuration(layout: Layout, stated: str | None, given: str | None, folder: str) -> None:
    assert SingleFile(layout, stated, False).configuration(given, "x") == folder


def test_stable_diffusion_2_must_say_what_it_predicts() -> None:
    with pytest.raises(
        UserError, match=r"'x' is of Stable Diffusion 2 .* set model\.prediction_type to epsilon"
    ):
        SingleFile(SD2, None, False).configuration(None, "x")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/models/Juggernaut.safetensors", True),
        ("s3://bucket/x.SafeTensors", True),
        ("https://host/x.safetensors?download=true", True),
        ("stabilityai/sdxl", False),
        ("s3://bucket/folder", False),
        ("mini-sd", False),
    ],
)
def test_single_files_are_known_by_their_suffix(path: str, expected: bool) -> None:
    assert is_single_file(path) is expected


@pytest.mark.parametrize(
    "path", ["/models/x.ckpt", "s3://b/x.pt", "https://h/x.CKPT?token=SECRET", "x.pth", "x.bin"]
)
def test_pickles_are_refused_by_their_suffix(path: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"a pickle, .* never read") as caught:
        is_single_file(path)
    assert "SECRET" not in str(caught.value)
