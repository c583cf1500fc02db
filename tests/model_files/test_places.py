"""Models are opened without their weights: folders, single files, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support import single_files
from textinv_ray.config.model import ModelConfig
from textinv_ray.config.model_families import (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    UnsupportedModelError,
)
from textinv_ray.model_files import places
from textinv_ray.util.errors import UserError


def opened(path: object, **fields: object) -> places.ModelFiles:
    return places.open_model(ModelConfig.model_validate({"path": str(path), **fields}))


def test_folders(tiny_sd: Path, tiny_sdxl: Path) -> None:
    assert opened("mini-sd").resolution == 64
    for folder, family in ((tiny_sd, STABLE_DIFFUSION), (tiny_sdxl, STABLE_DIFFUSION_XL)):
        files = opened(folder)
        assert (files.family, files.resolution, files.checkpoint) == (family, 16, None)
        assert files.scheduler_options == {}
    assert opened(tiny_sd, prediction_type="v_prediction").scheduler_options == {
        "prediction_type": "v_prediction"
    }


@pytest.mark.parametrize(
    ("layout", "more", "fields", "resolution", "options"),
    [
        ("stable-diffusion-1", {}, {}, 512, {}),
        ("stable-diffusion-2", {}, {"prediction_type": "epsilon"}, 512, {"prediction_type": "epsilon"}),
        ("stable-diffusion-2", {"v_pred": torch.zeros(0)}, {}, 768, {"prediction_type": "v_prediction"}),
        ("stable-diffusion-xl", {}, {}, 1024, {}),
        (
            "stable-diffusion-xl",
            {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
            {},
            1024,
            {
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
        ),
    ],
)
def test_single_files_with_the_configurations_here(
    layout: str,
    more: dict[str, Tensor],
    fields: dict[str, object],
    resolution: int,
    options: dict[str, object],
    tmp_path: Path,
) -> None:
    path = single_files.save_sparse(tmp_path / "x.safetensors", single_files.real(layout) | more)
    files = opened(path, **fields)
    assert files.checkpoint is not None
    assert (files.resolution, files.scheduler_options) == (resolution, options)


def test_a_single_file_with_its_configuration(tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    file = single_files.save(tmp_path / "x.safetensors", single_files.of_folder(tiny_sdxl))
    folder = single_files.configuration(tmp_path / "configuration", tiny_sdxl)
    assert opened(file, config=str(folder)).resolution == 16
    with pytest.raises(UnsupportedModelError, match=r"but its tensor .* is expected: give its configuration"):
        opened(file)
    with pytest.raises(
        UnsupportedModelError, match=r"is of Stable Diffusion XL, but model\.config is of Stable Diff"
    ):
        opened(file, config=str(tiny_sd))
    with pytest.raises(UserError, match=r"model\.config is for single files"):
        opened(tiny_sd, config=str(folder))
    with pytest.raises(UserError, match="none' doesn't exist"):
        opened(file, config=str(tmp_path / "none"))


def test_what_isnt_there_and_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for name, what in (
        ("none.safetensors", "doesn't exist"),
        ("none", "doesn't exist"),
        ("x.gguf", r"is a file, but not a \.safetensors file"),
    ):
        with pytest.raises(UserError, match=rf"{name}' {what} \(expected: a folder in diffusers' format"):
            opened(tmp_path / name)
    with pytest.raises(UserError, match=r"^the model 'memory://none/x\.safetensors' doesn't exist"):
        opened("memory://me:SECRET@none/x.safetensors")


def test_a_folder_may_be_called_like_a_file(tiny_sd: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.ckpt"):
        shutil.copytree(tiny_sd, tmp_path / name)
        assert opened(tmp_path / name).checkpoint is None


def changed(folder: Path, target: Path, file: str, **values: object) -> Path:
    """A copy of a pipeline folder, in which a JSON file has other values; without its weights."""
    copy = single_files.configuration(target, folder)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "KolorsPipeline"},
            "is a KolorsPipeline; words can be learned for",
        ),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLInpaintPipeline"},
            "is a StableDiffusionXLInpaintP",
        ),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLImg2ImgPipeline"},
            "is a StableDiffusionXLImg2ImgP",
        ),
        ("model_index.json", {"_class_name": None}, "has no _class_name"),
        ("unet/config.json", {"in_channels": 9}, "UNet takes 9 channels, as inpainting models do"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 2560}, "it is SDXL's refiner"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type is None, not text_time"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EDMDPMSolverMultistepScheduler"},
            "is an EDMDPMSolver",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "is an FlowMatch",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "it predicts 'sample'"),
    ],
)
def test_other_models_are_refused_without_their_weights(
    file: str, values: dict[str, object], message: str, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = changed(tiny_sdxl, tmp_path / "xl", file, **values)
    with pytest.raises(UnsupportedModelError, match=rf"{message}.*StableDiffusionXLPipeline"):
        opened(folder)


def test_an_sdxl_unet_in_a_pipeline_of_stable_diffusion(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = changed(tiny_sdxl, tmp_path / "xl", "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(UnsupportedModelError, match="addition_embed_type is text_time, not None"):
        opened(folder)
