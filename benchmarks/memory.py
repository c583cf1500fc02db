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
        F, "scaled_dot_product_attention", lambda q, k, v, **_: _FusedAttention.apply(q, k, v)
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), attention:
        yield found


def sample_bytes(name: str, side: int) -> tuple[int, int]:
    """What one sample of `side` pixels keeps: (all activations, with checkpointed activations)."""
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            unet = random_models.unet(name).requires_grad_(False)
            latents = torch.empty(1, 4, side // 8, side // 8)
            states = torch.empty(1, 77, unet.config.cross_attention_dim, requires_grad=True)
            added = None
            if random_models.is_xl(name):
                pooled_size = (
                    unet.config.projection_class_embeddings_input_dim
                    - 6 * unet.config.addition_time_embed_dim
                )
                pooled = torch.empty(1, pooled_size, requires_grad=True)
                added = {"text_embeds": pooled, "time_ids": torch.empty(1, 6)}
            timestep = torch.empty(1, dtype=torch.int64)
            with kept(unet) as everything:
                unet(latents, timestep, states, added_cond_kwargs=added)
            inputs: dict[int, int] = {}
            largest = 0

            def checkpointed(module: Callable[..., Any], *arguments: Any) -> Any:
                """Keeps a module's inputs; in the backward pass, one module's own at a time."""
                nonlocal largest
                for argument in arguments:
                    if isinstance(argument, Tensor):
                        storage = argument.untyped_storage()
                        inputs[storage._cdata] = storage.nbytes()
                        held.append(argument)
                with kept(unet) as own:
                    result = module(*arguments)
                largest = max(largest, sum(own.values()))
                return result

            held: list[Tensor] = []
            unet.enable_gradient_checkpointing(checkpointed)
            unet.train()  # diffusers checkpoints in training mode only
            with kept(unet) as between:
                unet(latents, timestep, states, added_cond_kwargs=added)
            return sum(everything.values()), sum({**between, **inputs}.values()) + largest
    finally:
        torch.set_default_dtype(torch.float32)


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
