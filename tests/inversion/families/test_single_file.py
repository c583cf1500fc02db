"""Checkpoints in one file give the weights of the folder that they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import single_files
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize(("name", "open_clip"), [("tiny_sd", False), ("tiny_sd", True), ("tiny_sdxl", False)])
def test_a_single_file_has_the_folder_s_weights(
    name: str, open_clip: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """To the last bit, in the layouts of Stable Diffusion 1, 2 and XL."""
    folder: Path = request.getfixturevalue(name)
    tensors = single_files.of_folder(folder, open_clip=open_clip)
    file = single_files.save(tmp_path / "x.safetensors", tensors)
    configuration = single_files.configuration(tmp_path / "configuration", folder)
    loaded = load_backbone(str(configuration), file=str(file), dtype="float32")
    expected = load_backbone(str(folder), dtype="float32")
    for one, other in zip(loaded.models, expected.models, strict=True):
        weights, true = one.state_dict(), other.state_dict()
        assert weights.keys() == true.keys()
        assert [key for key in true if not torch.equal(weights[key], true[key])] == []


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
        "model.diffusion_model.label_emb.0.2.bias",
        "first_stage_model.decoder.conv_in.weight",
    ],
)
def test_a_single_file_without_one_tensor_is_refused(key: str, tiny_sdxl: Path, tmp_path: Path) -> None:
    tensors = single_files.of_folder(tiny_sdxl)
    del tensors[key]
    file = single_files.save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match=r"x.safetensors' can't be loaded: the file has no "):
        load_backbone(str(tiny_sdxl), file=str(file), dtype="float32")


def test_a_single_file_of_other_sizes_than_its_configuration_is_refused(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    tensors = single_files.of_folder(tiny_sdxl)
    tensors["model.diffusion_model.out.2.weight"] = torch.zeros(8, 8, 3, 3)
    file = single_files.save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match=r"x.safetensors' can't be loaded: "):
        load_backbone(str(tiny_sdxl), file=str(file), dtype="float32")
