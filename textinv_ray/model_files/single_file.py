"""Recognises checkpoints in one file, as people share them, by the keys and shapes in their header.

Known are the original layouts of Stable Diffusion 1, 2 and XL. Everything else is refused with what it is, as far as
its keys tell. The keys are those that diffusers (`loaders/single_file_utils.py`) and ComfyUI
(`comfy/model_detection.py`, `comfy/supported_models.py`) go by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textinv_ray.config.model_families import (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    ModelFamily,
    UnsupportedModelError,
)
from textinv_ray.model_files.header import Header
from textinv_ray.util.errors import UserError

SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
UNET = "model.diffusion_model."
_CONV_IN = f"{UNET}input_blocks.0.0.weight"
_VAE = "first_stage_model."
_PREDICTIONS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "velocity": "v_prediction",
}
"""Values of `modelspec.prediction_type` and what diffusers calls them."""
_CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}
"""Input channels of a UNet that isn't a text-to-image model's -> what it is."""


@dataclass(frozen=True)
class Layout:
    """A layout of checkpoints that is known."""

    name: str
    """What people call models of it."""
    family: ModelFamily
    encoders: tuple[str, ...]
    """Prefixes of the text encoders' keys, in the order of the family's text encoders."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of a few tensors that tell a pruned or otherwise changed model from that of the configuration here."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Prefixes of the keys of all parts."""
        return (UNET, _VAE, *self.encoders)


SD1 = Layout(
    "Stable Diffusion 1",
    STABLE_DIFFUSION,
    ("cond_stage_model.transformer.text_model.",),
    {
        _CONV_IN: (320, 4, 3, 3),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        f"{UNET}output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    },
)
SD2 = Layout(
    "Stable Diffusion 2",
    STABLE_DIFFUSION,
    ("cond_stage_model.model.",),
    {
        _CONV_IN: (320, 4, 3, 3),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024),
        f"{UNET}output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "cond_stage_model.model.token_embedding.weight": (49408, 1024),
    },
)
SDXL = Layout(
    "Stable Diffusion XL",
    STABLE_DIFFUSION_XL,
    ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."),
    {
        _CONV_IN: (320, 4, 3, 3),
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        f"{UNET}middle_block.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        f"{UNET}output_blocks.2.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
    },
)
LAYOUTS = (SD1, SD2, SDXL)


@dataclass(frozen=True)
class SingleFile:
    """What the header of a checkpoint tells."""

    layout: Layout
    prediction_type: str | None
    """"epsilon" or "v_prediction"; None: the file doesn't say."""
    zero_terminal_snr: bool
    """Whether it was trained with zero terminal SNR (Lin et al. 2023)."""

    def configuration(self, prediction_type: str | None, shown: str) -> str:
        """Name of the folder with its configuration. prediction_type: of the settings, which go before the file.

        Raises UserError for a file of Stable Diffusion 2 that doesn't say what it predicts: its two kinds have the
        same shapes.
        """
        prediction = prediction_type or self.prediction_type
        if self.layout is SDXL:
            return "stable-diffusion-xl"
        if self.layout is SD1:
            return "stable-diffusion-1"
        if prediction is None:
            raise UserError(
                f"the model {shown!r} is of Stable Diffusion 2 and doesn't say what it predicts: set "
                "model.prediction_type to epsilon (the base models, 512 px) or v_prediction (768 px)"
            )
        return "stable-diffusion-2" if prediction == "v_prediction" else "stable-diffusion-2-base"


def is_single_file(path: str) -> bool:
    """Whether a model's path or URI names a file by its suffix, and not a folder or a Hub id.

    Raises UserError for suffixes of pickles.
    """
    name = path.split("?")[0].rstrip("/").lower() if "://" in path else path.lower()
    if name.endswith(PICKLE_SUFFIXES):
        suffix = name[name.rindex(".") :]
        raise UnsupportedModelError(
            f"the model {path.split('?')[0]!r} is a {suffix} file, a pickle, which can run code when it is opened, so "
            "it is never read: take the .safetensors file of this model"
        )
    return name.endswith(SUFFIX)


def recognise(header: Header, shown: str, *, any_shapes: bool = False) -> SingleFile:
    """Which layout a checkpoint has. any_shapes: its sizes aren't compared with those of the configuration here.

    Raises UnsupportedModelError for what words can't be learned for.
    """
    refused = _what_it_is(header)
    if refused:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise UnsupportedModelError(
            f"the model {shown!r} is {refused}; words can be learned for whole checkpoints of {known}"
        )
    layout = next((layout for layout in LAYOUTS if all(_has(header, part) for part in layout.encoders)), None)
    if layout is None:
        raise UnsupportedModelError(
            f"the model {shown!r} has a UNet of Stable Diffusion, but no text encoder in a known layout: "
            "take the whole checkpoint"
        )
    if not _has(header, _VAE):
        raise UnsupportedModelError(f"the model {shown!r} has no VAE: take the whole checkpoint")
    if not any_shapes:
        _check_shapes(header, layout, shown)
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    if stated and stated not in _PREDICTIONS:
        raise UnsupportedModelError(
            f"the model {shown!r} predicts {stated!r}; known are epsilon and v_prediction"
        )
    prediction = "v_prediction" if "v_pred" in header.tensors else _PREDICTIONS.get(stated)
    return SingleFile(layout, prediction, "ztsnr" in header.tensors)


def _check_shapes(header: Header, layout: Layout, shown: str) -> None:
    for name, expected in layout.shapes.items():
        found = header.tensors[name].shape if name in header.tensors else None
        if found != expected:
            what = "isn't there" if found is None else f"has shape {found}"
            raise UnsupportedModelError(
                f"the model {shown!r} looks like {layout.name}, but its tensor {name!r} {what}, where {expected} is "
                "expected: give its configuration in diffusers' format with model.config"
            )


def _has(header: Header, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in header.tensors)


def _contains(*parts: str) -> Callable[[Header], bool]:
    return lambda header: any(part in key for key in header.tensors for part in parts)


_OTHERS: tuple[tuple[str, Callable[[Header], bool]], ...] = (
    (
        "a LoRA or the like, an addition to a model",
        _contains("lora_", ".lora.", "lokr_", "loha_", "hada_w", "dora_scale", "oft_blocks"),
    ),
    (
        "a ControlNet",
        _contains("control_model.", "controlnet_", "input_hint_block.", "control_add_embedding"),
    ),
    ("a video model or a motion module", _contains("motion_modules.", "time_stack.", "temporal_transformer")),
    ("a model of Stable Diffusion 3", _contains("joint_blocks.")),
    ("a model of Flux.2", _contains("single_stream_modulation")),
    ("a model of Flux or one of its descendants", _contains("double_blocks.", "distilled_guidance_layer.")),
    ("a model of Z-Image or Lumina", _contains("cap_embedder.", "noise_refiner.")),
    ("a model of Stable Cascade", _contains("clip_txt_mapper.", ".channelwise.")),
    ("an unCLIP model", _contains("noise_augmentor.", "embedder.model.visual.")),
    (
        "an EDM model (such as Playground 2.5 or CosXL), whose noise levels aren't Stable Diffusion's",
        lambda header: bool({"edm_mean", "edm_std", "edm_vpred.sigma_max"} & set(header.tensors)),
    ),
)
"""What other files are, and how it is seen. The first that fits counts."""


def _what_it_is(header: Header) -> str | None:
    """What a file is that isn't a checkpoint of a known layout; None where it seems to be one."""
    tensors = header.tensors
    if not tensors:
        return "empty: it has no tensors"
    for what, holds in _OTHERS:
        if holds(header):
            return what
    if _CONV_IN in tensors:
        shape = tensors[_CONV_IN].shape
        channels = shape[1] if len(shape) == 4 else 0
        if channels != 4:
            return _CHANNELS.get(channels, f"no text-to-image model: its UNet takes {channels} channels")
        if _has(header, "conditioner.embedders.0.model.") and not _has(header, "conditioner.embedders.1."):
            return "SDXL's refiner"
        return None
    if len(tensors) <= 8 and all(len(info.shape) <= 2 for info in tensors.values()):
        return "a file of words (an embedding)"
    if _has(header, UNET):
        return "a model of an unknown kind"
    if any(key.endswith(("encoder.conv_in.weight", "decoder.conv_in.weight")) for key in tensors):
        return "a VAE alone"
    if _contains("text_model.encoder.layers.", "transformer.resblocks.")(header):
        return "a text encoder alone"
    if _contains("down_blocks.", "input_blocks.")(header):
        return "a UNet alone"
    return f"of an unknown kind (its keys are like {sorted(tensors)[0]!r})"
