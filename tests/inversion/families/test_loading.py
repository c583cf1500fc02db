from __future__ import annotations

import json
import platform
import re
import shutil
from pathlib import Path

import pytest
import torch

from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize(("dtype", "mapped"), [("float32", True), ("bfloat16", False)])
def test_workers_of_a_node_share_weights_of_the_files_precision(
    tiny_sd: Path, tmp_path: Path, dtype: str, mapped: bool
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    backbone = load_backbone(str(folder), device="cpu", dtype=dtype)
    files = Path("/proc/self/maps").read_text()
    for name in ("unet", "vae", "text_encoder"):
        assert (str(folder / name) in files) == mapped, backbone


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
def test_auto_is_bfloat16_where_the_kernel_says_that_the_cpu_has_it(tiny_sd: Path) -> None:
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    has_bfloat16 = bool(flags & {"amx_bf16", "avx512_bf16"})
    assert (load_backbone(str(tiny_sd), device="cpu").dtype == torch.bfloat16) == has_bfloat16


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be loaded"):
        load_backbone(str(tmp_path / "nowhere"))


def test_a_part_that_is_not_there(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match="can't be loaded") as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model"])
def test_weights_that_were_cut_off(tiny_sd: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    weights = folder / f"{part}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="sd' can't be loaded: ") as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("class_name", ["StableDiffusionInpaintPipeline", "MochiPipeline"])
def test_other_pipelines_are_refused(tiny_sd: Path, tmp_path: Path, class_name: str) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "other")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": class_name}))
    with pytest.raises(UserError, match=f"other' is a {class_name}; .*StableDiffusionPipeline"):
        load_backbone(str(folder))


def test_pickles_are_never_read(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "pickled")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="can't be loaded"):
        load_backbone(str(folder))
