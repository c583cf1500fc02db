"""Counts what a training sample and a picture cost, by model: the table that `textinv plan` computes with.

    python benchmarks/costs.py [--models sd15,flux] [--write]

Models are built at their real sizes without values, on torch's meta device: neither weights nor a GPU are needed.
Counted are floating-point operations (a multiplication and an addition are two) of the denoiser and of the text
encoders, forward and backward to the words, and of the VAE; parameters; and the bytes that autograd keeps of a sample
in float16 with fused attention (benchmarks/memory.py), with and without activation checkpointing. Sana's VAE is
diffusers' default of its class. --write puts the table into the package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import encoder_share, memory, random_models
from benchmarks.encoder_share import Part
from textinv_ray.sizing.tables import COSTS_FILE, SIDES


@dataclass(frozen=True)
class Counted:
    """A model at its real size."""

    denoiser: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    """Side in pixels -> arguments of the denoiser for one sample."""
    encoders: tuple[Part, ...]
    vae: Callable[[], nn.Module]
    latent: Callable[[int], tuple[int, ...]]
    """Side in pixels -> shape of a latent that the VAE decodes."""


def _unet(name: str, encoders: tuple[Part, ...]) -> Counted:
    folder = random_models.LAYOUTS / random_models.SIZES[name][0]
    return Counted(
        lambda: random_models.unet(name),
        lambda side: memory.unet_inputs(name, side),
        encoders,
        lambda: AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
        lambda side: (1, 4, side // 8, side // 8),
    )


def _kl16() -> nn.Module:
    """The VAE of Stable Diffusion 3 and Flux.1."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
    )


def _transformer(name: str, vae: Callable[[], nn.Module], channels: int, factor: int) -> Counted:
    (model,) = (model for model in encoder_share.MODELS if model.name == name)
    return Counted(
        model.denoiser,
        lambda side: model.inputs(1, side),
        model.encoders,
        vae,
        lambda side: (1, channels, side // factor, side // factor),
    )


_CLIP_H = Part("clip_h", lambda: random_models.text_encoder("sd21", "text_encoder"), 77)
MODELS: dict[str, Counted] = {
    "sd15": _unet("sd15", (encoder_share.CLIP_L,)),
    "sd21": _unet("sd21", (_CLIP_H,)),
    "sdxl": _unet("sdxl", (encoder_share.CLIP_L, encoder_share.CLIP_G)),
    "sd35-medium": _transformer("SD 3.5 medium", _kl16, 16, 8),
    "sd35-large": _transformer("SD 3.5 large", _kl16, 16, 8),
    "flux": _transformer("Flux.1 dev", _kl16, 16, 8),
    "sana": _transformer("Sana 1.6B", AutoencoderDC, 32, 32),
    "klein-4b": _transformer("Flux.2 Klein 4B", AutoencoderKLFlux2, 32, 8),
    "klein-9b": _transformer("Flux.2 Klein 9B", AutoencoderKLFlux2, 32, 8),
}
"""Name -> model, as in the table."""


def parameters(model: nn.Module) -> int:
    """Their number."""
    return sum(weight.numel() for weight in model.parameters())


def flop(run: Callable[[], object]) -> int:
    """Of whatever `run` does."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return int(counter.get_total_flops())


def cost_of(model: Counted) -> dict[str, Any]:
    """A model's line of the table."""
    with memory.half_precision(), torch.device("meta"):
        vae, sides = model.vae().requires_grad_(False), {}
        coder: Any = vae
        for side in SIDES:
            denoiser, inputs = model.denoiser().requires_grad_(False), model.inputs(side)

            def forward(
                denoiser: nn.Module = denoiser, inputs: dict[str, Any] = inputs
            ) -> tuple[Tensor, list[Tensor]]:
                given = {name: value * 1 if value.requires_grad else value for name, value in inputs.items()}
                wanted = [value for value in inputs.values() if value.requires_grad]
                return memory.predict(denoiser, given), wanted

            with torch.no_grad():
                once = flop(forward)
                encode = flop(partial(coder.encode, torch.empty(1, 3, side, side)))
                decode = flop(partial(coder.decode, torch.empty(model.latent(side))))
            both = encoder_share.flop(forward)
            kept, checkpointed = memory.activation_bytes(denoiser, inputs)
            sides[str(side)] = {
                "forward": once,
                "both": both,
                "encode": encode,
                "decode": decode,
                "kept": kept,
                "checkpointed": checkpointed,
            }
        encoders = []
        for part in model.encoders:
            encoder = part.model().requires_grad_(False)
            run = encoder_share.of_encoder(encoder, part.tokens)
            with memory.kept(encoder) as activations:
                run()
            with torch.no_grad():
                once = flop(run)
            encoders.append(
                {
                    "name": part.name,
                    "parameters": parameters(encoder),
                    "forward": once,
                    "both": encoder_share.flop(run),
                    "kept": sum(activations.values()),
                }
            )
        return {
            "parameters": parameters(model.denoiser()),
            "vae_parameters": parameters(vae),
            "encoders": encoders,
            "sides": sides,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS), help="some of them, with commas")
    parser.add_argument("--write", action="store_true", help="replace the package's lines of these models")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = {}
    for name in options.models.split(","):
        table[name] = cost_of(MODELS[name])
        print(name, json.dumps(table[name]), flush=True)
    if options.write:
        before = json.loads(COSTS_FILE.read_text()) if COSTS_FILE.exists() else {}
        COSTS_FILE.write_text(json.dumps({**before, **table}, indent=1) + "\n")
    if options.json:
        options.json.write_text(json.dumps(table))


if __name__ == "__main__":
    main()
