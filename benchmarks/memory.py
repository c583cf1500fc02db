"""What a step needs on a GPU, by arithmetic: weights, and what the UNet keeps for the backward pass.

    python benchmarks/memory.py [--model sdxl|sd15] [--sides 1024,768] [--json PATH]

Nothing is computed: the UNet runs on torch's meta device, in float16 with fused attention, and the bytes of all tensors
that autograd keeps are added up. A real device needs more: work space, fragments, and about 1 GB for CUDA itself,
which RESERVE_GB stands for.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import measure, random_models

GPUS_GB = (16, 24, 80)
RESERVE_GB = 2.0
GB = 1e9


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values, the output, and a number for each query."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        log_sum = torch.empty(query.shape[:-1], device=query.device, dtype=torch.float32)
        context.save_for_backward(query, key, value, output, log_sum)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        raise AssertionError("there is no backward pass here")


@contextmanager
def kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of what autograd keeps meanwhile, by storage, without the model's weights."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    found: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage's number is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    attention = mock.patch.object(
        F,
        "scaled_dot_product_attention",
        lambda query, key, value, *_, **__: _FusedAttention.apply(query, key, value),
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), attention:
        yield found


def sample_bytes(name: str, side: int) -> tuple[int, int]:
    """What one sample of `side` pixels keeps: (all activations, with checkpointed activations)."""
    with half_precision(), torch.device("meta"):
        return activation_bytes(random_models.unet(name), unet_inputs(name, side))


@contextmanager
def half_precision() -> Iterator[None]:
    """Within, models and tensors are made in float16."""
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def unet_inputs(name: str, side: int) -> dict[str, Any]:
    """Arguments of the UNet of a size for one sample, on torch's default device."""
    config = UNet2DConditionModel.load_config(random_models.LAYOUTS / random_models.SIZES[name][0] / "unet")
    config |= random_models.SIZES[name][1]
    inputs = {
        "sample": torch.empty(1, 4, side // 8, side // 8),
        "timestep": torch.empty(1, dtype=torch.int64),
        "encoder_hidden_states": torch.empty(1, 77, config["cross_attention_dim"], requires_grad=True),
    }
    if random_models.is_xl(name):
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["text_embeds"] = torch.empty(1, width, requires_grad=True)
    return inputs


def predict(denoiser: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """What a denoiser makes of its inputs."""
    given = dict(inputs)
    if "text_embeds" in given:
        added = {"text_embeds": given.pop("text_embeds"), "time_ids": torch.empty(1, 6, device="meta")}
        given["added_cond_kwargs"] = added
    found: Tensor = denoiser(**given, return_dict=False)[0]
    return found


def activation_bytes(denoiser: Any, inputs: dict[str, Any]) -> tuple[int, int]:
    """What a denoiser of the meta device keeps of one pass: (all activations, with checkpointed activations)."""
    denoiser.requires_grad_(False)
    with kept(denoiser) as everything:
        predict(denoiser, inputs)
    held: dict[int, int] = {}
    alive: list[Tensor] = []
    largest = 0

    def checkpointed(module: Callable[..., Any], *arguments: Any) -> Any:
        """Keeps a module's inputs; in the backward pass, one module's own at a time."""
        nonlocal largest
        for argument in arguments:
            if isinstance(argument, Tensor):
                storage = argument.untyped_storage()
                held[storage._cdata] = storage.nbytes()
                alive.append(argument)
        with kept(denoiser) as own:
            result = module(*arguments)
        largest = max(largest, sum(own.values()))
        return result

    denoiser.enable_gradient_checkpointing(checkpointed)
    denoiser.train()  # diffusers checkpoints in training mode only
    with kept(denoiser) as between:
        predict(denoiser, inputs)
    return sum(everything.values()), sum({**between, **held}.values()) + largest


def weight_bytes(name: str) -> int:
    """Of the UNet, the text encoders and the real VAE, at two bytes a number."""
    with torch.device("meta"):
        parts = ("text_encoder", "text_encoder_2") if random_models.is_xl(name) else ("text_encoder",)
        models = [random_models.unet(name), *(random_models.text_encoder(name, part) for part in parts)]
    return 2 * (sum(p.numel() for model in models for p in model.parameters()) + 83_653_863)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sdxl", choices=list(random_models.SIZES))
    parser.add_argument("--sides", default="1024,768", help="of the images in pixels; several with commas")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    weights, rows = weight_bytes(options.model), []
    for side in map(int, options.sides.split(",")):
        for checkpointing, size in zip(("off", "on"), sample_bytes(options.model, side), strict=True):
            fit = {
                f"samples in {gb} GB": max(0, math.floor((gb * GB - weights - RESERVE_GB * GB) / size))
                for gb in GPUS_GB
            }
            rows.append({"side": side, "checkpointing": checkpointing, "GB a sample": size / GB, **fit})
    print(f"{options.model}: {weights / GB:.2f} GB of weights in float16; {RESERVE_GB:g} GB are left free")
    print(measure.table(rows))
    measure.write_json(options.json, {"model": options.model, "weight_bytes": weights, "rows": rows})


if __name__ == "__main__":
    main()
