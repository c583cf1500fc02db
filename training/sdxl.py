"""Train mini-sdxl's UNet on latents of whole, cropped and small pictures, and write the pipeline.

    torchrun --nproc-per-node N -m training.sdxl --encode
    torchrun --nproc-per-node N -m training.sdxl [--preset cpu|gpu] [--steps N] [--hours H]

The loop, its objective and what it writes are those of `training.unet`; what differs is the model
(`training/sdxl_model.py`), which begins as mini-sd does end, and that the model is told of each picture how large it
was and how it was cropped (Podell et al. 2023, section 2.2): a third of the drawings are made small or are cropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from training.batches import all_features
from training.common import BUILD, MODELS, PRESETS, Data, Team, device
from training.group_norm import use_channels_last_group_norm
from training.model import SIDE
from training.sdxl_model import MiniSDXL
from training.tokenizer import load as load_tokenizer
from training.unet import arguments, train
from training.vae import encode_all

FOLDER = BUILD / "sdxl"
SMALLEST, LARGEST = 20, 1024
"""Sides of the original pictures, in pixels."""
CLOSEST = 104
"""Side that a picture is enlarged to before it is cropped, at most."""


@dataclass(frozen=True)
class View:
    """How a drawing is shown: made `side` pixels large, enlarged to `shown`, cropped to SIDE at (top, left)."""

    side: int
    shown: int = SIDE
    top: int = 0
    left: int = 0

    @property
    def size(self) -> tuple[int, ...]:
        """As in `whole_pictures`."""
        return self.side, self.side, self.top, self.left, SIDE, SIDE

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (SIDE, SIDE, 3) -> the same."""
        image = Image.fromarray(pixels)
        if self.side < SIDE:
            image = image.resize((self.side, self.side), Image.Resampling.BOX)
        image = image.resize((self.shown, self.shown), Image.Resampling.BICUBIC)
        return np.asarray(image.crop((self.left, self.top, self.left + SIDE, self.top + SIDE)))


def view(index: int) -> View:
    """Of a drawing always the same one: one in six is small, one in six is cropped.

    The others count as pictures of any size from SIDE up, because lines look the same however large they were.
    """
    rng = np.random.default_rng((13, index))
    if index % 6 == 0:
        return View(int(rng.integers(SMALLEST, SIDE)))
    side = round(SIDE * (LARGEST / SIDE) ** float(rng.random()))
    if index % 6 > 1:
        return View(side)
    shown = int(rng.integers(SIDE + 4, CLOSEST + 1))
    top, left = (int(offset) for offset in rng.integers(0, shown - SIDE + 1, 2))
    return View(side, shown, top, left)


class Views(Data):
    """Drawings as SDXL meets pictures of the web."""

    def pixels(self, indices: Iterable[int]) -> np.ndarray:
        picked = list(indices)
        whole = super().pixels(picked)
        return np.stack([view(index).apply(image) for index, image in zip(picked, whole, strict=True)])


def main() -> None:
    parser = arguments(__doc__, FOLDER)
    parser.add_argument("--encode", action="store_true", help="only encode the pictures")
    options = parser.parse_args()
    torch.manual_seed(0)
    data, tokenizer = Views(BUILD / "drawings"), load_tokenizer()
    moments = FOLDER / "moments.npy"
    if options.encode:
        vae = AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").float()
        use_channels_last_group_norm(vae)
        encode_all(vae.to(device(), memory_format=torch.channels_last), data, Team(), moments)
        return
    model = MiniSDXL(PRESETS[options.preset], tokenizer, all_features(data))
    sizes = torch.tensor([view(index).size for index in range(len(data))]).float()
    train(options, model, data, tokenizer, np.load(moments), sizes)


if __name__ == "__main__":
    main()
