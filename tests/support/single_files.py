"""Checkpoints in one file, in the layout of the original code: the inverse of what diffusers' converter does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from textinv_ray.model_files.clip_tokenizer import LAYOUTS

_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def of_folder(folder: Path, *, open_clip: bool = False) -> dict[str, Tensor]:
    """The tensors of a pipeline folder as one checkpoint. open_clip: in the layout of Stable Diffusion 2."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    first = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    if not (folder / "text_encoder_2").is_dir():
        return _checkpoint(unet, vae, first, None, open_clip=open_clip)
    second = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2")
    return _checkpoint(unet, vae, first, second)


def real(layout: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint of real size, on the meta device: names and shapes alone."""
    folder = LAYOUTS / layout
    with init_empty_weights(include_buffers=True):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        first = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
        second = None
        if (folder / "text_encoder_2").is_dir():
            config = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder_2")
            second = CLIPTextModelWithProjection(config)
    return _checkpoint(unet, vae, first, second, open_clip="diffusion-2" in layout)


def _checkpoint(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    first: CLIPTextModel,
    second: CLIPTextModelWithProjection | None,
    open_clip: bool = False,
) -> dict[str, Tensor]:
    tensors = {
        f"model.diffusion_model.{_unet_key(key, unet)}": value for key, value in unet.state_dict().items()
    }
    tensors |= {
        f"first_stage_model.{_vae_key(key, vae)}": value[..., None, None]
        if re.search(r"attentions.*(to_.).*weight", key)
        else value
        for key, value in vae.state_dict().items()
    }
    if second is not None:
        tensors |= _clip(first, "conditioner.embedders.0.transformer.")
        return tensors | _openclip(second, "conditioner.embedders.1.model.")
    return tensors | (
        _openclip(first, "cond_stage_model.model.")
        if open_clip
        else _clip(first, "cond_stage_model.transformer.")
    )


def _unet_key(key: str, unet: UNet2DConditionModel) -> str:
    length = unet.config.layers_per_block + 1
    for name, original in _UNET.items():
        if key.startswith(f"{name}."):
            return original + key[len(name) :]
    for name, original in _RESNET.items():
        if ".resnets." in key:
            key = key.replace(f".{name}.", f".{original}.")
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        kind, number, rest = found.groups()
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    assert found, key
    direction, block, kind, number, rest = found.groups()
    place = int(block) * length + int(number)
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * length}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        after = 2 if hasattr(unet.up_blocks[int(block)], "attentions") else 1
        return f"output_blocks.{int(block) * length + length - 1}.{after}.{rest}"
    side = f"input_blocks.{place + 1}" if direction == "down" else f"output_blocks.{place}"
    return f"{side}.{0 if kind == 'resnets' else 1}.{rest}"


def _vae_key(key: str, vae: AutoencoderKL) -> str:
    last = len(vae.config.up_block_types) - 1
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{last - int(found[1])}.block.", key)
    key = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{last - int(found[1])}.upsample.", key
    )
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    if "mid_block.attentions.0." in key:
        key = key.replace("mid_block.attentions.0.", "mid.attn_1.")
        for name, original in _VAE_ATTENTION.items():
            key = key.replace(f".{name}.", f".{original}.")
    return key


def _clip(model: CLIPTextModel, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": value
        for key, value in model.state_dict().items()
    }


def _openclip(model: CLIPTextModel | CLIPTextModelWithProjection, prefix: str) -> dict[str, Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    width = model.config.hidden_size
    projection = state.pop("text_projection.weight", torch.zeros(width, width))
    tensors = {
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
        "text_projection": projection.T,
    }
    for key, value in state.items():
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", key)
        assert found, key
        layer, part, kind = found.groups()
        block = f"transformer.resblocks.{layer}"
        if part in ("self_attn.k_proj", "self_attn.v_proj"):
            continue
        if part == "self_attn.q_proj":
            parts = [state[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")]
            tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
        else:
            tensors[f"{block}.{_OPEN_CLIP[part]}.{kind}"] = value
    return {prefix + key: value for key, value in tensors.items()}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, dict(metadata or {}))
    return path


def save_sparse(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint of float16 zeros, which takes no space on the disk: the header, and a hole."""
    header: dict[str, object] = {}
    end = 0
    for key, value in tensors.items():
        start, end = end, end + 2 * value.numel()
        header[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def configuration(folder: Path, tiny_folder: Path) -> Path:
    """A copy of a pipeline folder without its weights."""
    for path in tiny_folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            copy = folder / path.relative_to(tiny_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return folder
