"""The models of a configuration, from a folder and from a single file."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch

from tests.support import single_files
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.service.models import loading
from textinv_ray.util.errors import UserError


def config(**model: object) -> JobConfig:
    return JobConfig.from_dict({"model": {"dtype": "float32", **model}})


def test_a_single_file_by_its_path(tiny_sdxl: Path, tmp_path: Path) -> None:
    """v-prediction and zero terminal SNR by the keys in the file, as NoobAI's have them."""
    tensors = single_files.of_folder(tiny_sdxl) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    path = single_files.save(tmp_path / "xl.safetensors", tensors)
    folder = single_files.configuration(tmp_path / "configuration", tiny_sdxl)
    backbone = loading.backbone(config(path=str(path), config=str(folder)))
    assert isinstance(backbone, StableDiffusionXL)
    settings = backbone.scheduler.config
    assert (settings.prediction_type, settings.timestep_spacing) == ("v_prediction", "trailing")
    assert backbone.scheduler.alphas_cumprod[-1] == 0


def test_a_single_file_by_its_uri_is_copied_once(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = single_files.save(tmp_path / "x.safetensors", single_files.of_folder(tiny_sd))
    folder = single_files.configuration(tmp_path / "configuration", tiny_sd)
    memory = fsspec.filesystem("memory")
    memory.put_file(str(path), "/single/x.safetensors")
    job = config(path="memory://single/x.safetensors", config=str(folder))
    first = loading.backbone(job)
    memory.store.clear()
    second = loading.backbone(job)
    assert isinstance(first, StableDiffusion)
    for one, other in zip(first.models, second.models, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_prediction_of_a_folder_can_be_set(tiny_sd: Path) -> None:
    backbone = loading.backbone(config(path=str(tiny_sd), prediction_type="v_prediction"))
    assert isinstance(backbone, StableDiffusion)
    assert backbone.scheduler.config.prediction_type == "v_prediction"


def test_a_torn_file_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    path = single_files.save(tmp_path / "x.safetensors", single_files.of_folder(tiny_sd))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged: by its header it has"):
        loading.backbone(config(path=str(path), config=str(tiny_sd)))
