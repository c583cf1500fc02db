"""Loads an encoder by the kind of model that its configuration names."""

from __future__ import annotations

from PIL import Image
from transformers import AutoConfig, BitImageProcessorPil

from textinv_ray.inversion.dino import Dino
from textinv_ray.inversion.encoders import Encoder, loading
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.siglip import Siglip
from textinv_ray.util.errors import UserError

CLASSES: dict[str, type[Scorer] | type[Siglip] | type[Dino]] = {
    "clip": Scorer,
    "siglip": Siglip,
    "siglip2": Siglip,
    "vit": Dino,
    "dinov2": Dino,
    "dinov2_with_registers": Dino,
    "dinov3_vit": Dino,
}
"""By `model_type` of config.json. DINO (Caron et al. 2021) is of the type `vit`."""


def model_type(path: str) -> str:
    """The `model_type` of a folder or Hub id, a key of CLASSES. Raises UserError."""
    with loading("scoring model", path):
        found = str(AutoConfig.from_pretrained(path).model_type)
    if found not in CLASSES:
        raise UserError(f"the scoring model {path!r} is a {found} model; known are {', '.join(CLASSES)}")
    return found


def load_encoder(
    path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    resize: int | None = None,
    crop: int | None = None,
) -> Encoder:
    """Loads a CLIP, SigLIP, DINO or ViT model with its processor from a folder or Hub id. Raises UserError.

    `device` "auto": CUDA when there is one. `dtype` "auto": float16 on CUDA, float32 elsewhere. `resize`, `crop`: in
    place of the model's own preprocessing, the shorter side is resized to `resize` pixels (bicubic) and a square of
    `crop` is cut from the middle; mean and standard deviation stay. A model of another size than `crop` gets both in
    proportion.
    """
    encoder = CLASSES[model_type(path)].load(path, device=device, dtype=dtype)
    if resize is None:
        return encoder
    own, config = encoder.processor, encoder.model.config
    side = int(getattr(config, "vision_config", config).image_size)
    resize = round(resize * side / (crop or resize))
    encoder.processor = BitImageProcessorPil(
        size={"shortest_edge": resize},
        crop_size={"height": side, "width": side},
        resample=Image.Resampling.BICUBIC,
        image_mean=own.image_mean,
        image_std=own.image_std,
    )
    return encoder
