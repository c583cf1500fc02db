"""Put weights between the bundled UNet's and those of a run that went on from them into the bundled model.

    python -m training.interpolate build/mini/unet/mini-sd --share 0.8

Before the end of the line most of what a run on other data has learned is there already, and less of what was known
before is lost than at its end (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from training.common import MODELS

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


def between(
    first: dict[str, torch.Tensor], last: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Each weight at `share` of the way, in the precision of `first`. Raises ValueError for weights of other shapes."""
    if {name: weight.shape for name, weight in first.items()} != {
        name: weight.shape for name, weight in last.items()
    }:
        raise ValueError("these are weights of different models")
    return {
        name: torch.lerp(weight.float(), last[name].float(), share).to(weight.dtype)
        for name, weight in first.items()
    }


def a_share(text: str) -> float:
    """A number in (0, 1]."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0, and 1 at most")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a pipeline's folder, as `training.unet` writes it")
    parser.add_argument("--share", type=a_share, required=True, help="of the way to it")
    parser.add_argument("--to", type=Path, default=MODELS / "mini-sd", help="the pipeline that is changed")
    options = parser.parse_args()
    bundled = options.to / UNET
    mixed = between(load_file(bundled), load_file(options.model / UNET), options.share)
    bundled.write_bytes(save(mixed, {"format": "pt"}))


if __name__ == "__main__":
    main()
