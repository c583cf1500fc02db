"""The families of models that words can be learned for: what is known of them before a weight is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from textinv_ray.config.job import JobConfig
from textinv_ray.util.errors import UserError

Sampler = Literal["dpmsolver++", "ddim", "euler"]


class UnsupportedModelError(UserError):
    """A model that was found, and that words can't be learned for."""


@dataclass(frozen=True)
class ModelFamily:
    """A family of text-to-image models in diffusers' format."""

    name: str
    """What people call it."""
    pipelines: tuple[str, ...]
    """Values of `_class_name` in `model_index.json`."""
    denoiser: str
    """Folder of the network that predicts."""
    text_encoders: tuple[str, ...]
    """Folders of the text encoders, in the order in which a word's vectors are concatenated."""
    tokenizers: tuple[str, ...]
    """Folders of their tokenizers."""
    encoders: tuple[str, ...]
    """Names of the text encoders in files of words; a model may have less."""
    second_from: int | None = None
    """Of a family that has one of two text encoders: the size of token embeddings from which on it is the second."""
    optional: tuple[str, ...] = ()
    """Folders that a model may lack: then they are null in its `model_index.json`."""
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the noise levels in training."""
    flow: bool = False
    """Whether it predicts the velocity of a rectified flow; else epsilon or v."""
    samplers: tuple[Sampler, ...] = ("dpmsolver++", "ddim", "euler")
    """Values of `review.sampler`."""
    side_multiple: int = 8
    """What the side of images is a multiple of, in pixels."""
    negative_prompts: bool = True
    """Whether there is classifier-free guidance with negative prompts."""
    cuda_dtype: Literal["float16", "bfloat16"] = "float16"
    """`model.dtype: auto` on CUDA."""
    read_by: tuple[str, ...] = ()
    """Programs that read its words' files, by their sources, for the documentation. Our `load_words` does for all."""
    run_with: str = "tiny random models"
    """What its code was run with here, for the documentation."""
    context_encoders: tuple[str, ...] = ()
    """Names of the text encoders that `training.context_weight` acts on: the denoiser reads their states token by
    token, and their prompts hold no text of the model's own."""
    addition: str | None = None
    """`addition_embed_type` in the configuration of its UNet."""

    @property
    def parts(self) -> tuple[str, ...]:
        """All folders that are read."""
        return (self.denoiser, "vae", *self.text_encoders, *self.tokenizers, "scheduler")

    def parts_of(self, model_index: Mapping[str, Any]) -> tuple[str, ...]:
        """The folders that are read of a model, by its model_index.json."""
        return tuple(part for part in self.parts if not (part in self.optional and lacks(model_index, part)))

    def encoder_names(self, sizes: Sequence[int]) -> tuple[str, ...]:
        """Names of a model's text encoders. sizes: of their token embeddings."""
        if self.second_from is None:
            return self.encoders[: len(sizes)]
        return tuple(self.encoders[size >= self.second_from] for size in sizes)

    def resolution(self, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
        """Side of the model's square images in pixels, by its configurations."""
        if "sample_size" not in denoiser:  # Flux's transformers have no size of their own
            return int(vae["sample_size"])
        return int(denoiser["sample_size"]) * vae_factor(vae)

    def check(self, config: JobConfig) -> None:
        """Raises UserError for settings that these models have no use for."""
        review, training = config.review, config.training
        if review.sampler not in self.samplers:
            raise UserError(
                f"review.sampler: {self.name} has no {review.sampler!r}; set it to {' or '.join(self.samplers)}"
            )
        if self.flow and config.model.prediction_type is not None:
            raise UserError(f"model.prediction_type: {self.name} learns a flow; leave it out")
        if self.flow and training.loss_weight != "none":
            raise UserError(
                f"training.loss_weight: {training.loss_weight!r} is for models that predict epsilon or v; "
                f"{self.name} learns a flow, whose noise levels training.timesteps sets"
            )
        self.check_encoders(training.encoders)
        if training.context_weight > 0 and (wrong := self.lacks_context(training.encoders)):
            raise UserError(f"training.context_weight: {wrong}; set it to 0")
        self.check_side(config.data.resolution, "data.resolution")
        self.check_side(review.resolution, "review.resolution")

    def check_encoders(self, names: Collection[str] | None, own: Sequence[str] | None = None) -> None:
        """Raises UserError for `training.encoders` that a model doesn't have. own: those it has; None: its family's."""
        has, whose = (self.encoders, self.name) if own is None else (own, f"this {self.name} model")
        if unknown := [name for name in names or () if name not in has]:
            raise UserError(
                f"training.encoders: {whose} has no {unknown[0]} (its text encoders: {', '.join(has)})"
            )

    def lacks_context(self, learned: Collection[str] | None) -> str:
        """Why context regularisation has no effect on words for these text encoders (None: all); empty: it has."""
        if learned is None and self.context_encoders:
            return ""
        if self.context_encoders and set(learned or ()) & set(self.context_encoders):
            return ""
        has = " and ".join(self.context_encoders) or "none"
        return f"context regularisation acts on vectors for CLIP and T5 (of {self.name}: {has})"

    def check_side(self, side: int | None, name: str) -> None:
        """Raises UserError for a side of images in pixels that the model can't have. name: of the setting."""
        if wrong := self.wrong_side(side):
            raise UserError(f"{name}: {wrong}")

    def wrong_side(self, side: int | None) -> str:
        """What is wrong with a side of images in pixels; empty: nothing."""
        if side is None or side % self.side_multiple == 0:
            return ""
        return f"images of {self.name} have sides of a multiple of {self.side_multiple}, not {side}"


def lacks(model_index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline was saved without a part: it is missing, or null."""
    entry = model_index.get(part)
    return not entry or entry[0] is None


def vae_factor(vae: Mapping[str, Any]) -> int:
    """Pixels along a side of a latent, as the denoiser sees them, by a VAE's configuration."""
    blocks = vae.get("block_out_channels") or vae["encoder_block_out_channels"]
    return int(2 ** (len(blocks) - 1)) * patch_size(vae)


def patch_size(vae: Mapping[str, Any]) -> int:
    """Latents of the VAE along a side of one that the denoiser sees: 2 of Flux.2, else 1."""
    return int((vae.get("patch_size") or (1,))[0])


STABLE_DIFFUSION = ModelFamily(
    name="Stable Diffusion 1.x / 2.x",
    pipelines=("StableDiffusionPipeline",),
    denoiser="unet",
    text_encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    encoders=("clip_l", "clip_h"),
    context_encoders=("clip_l", "clip_h"),
    second_from=1024,
    read_by=("diffusers", "A1111", "ComfyUI"),
    run_with="the bundled mini-sd, tiny random models",
)
STABLE_DIFFUSION_XL = ModelFamily(
    name="Stable Diffusion XL",
    pipelines=("StableDiffusionXLPipeline",),
    denoiser="unet",
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    encoders=("clip_l", "clip_g"),
    context_encoders=("clip_l", "clip_g"),
    read_by=("diffusers", "A1111", "ComfyUI"),
    run_with="the bundled mini-sdxl, tiny random models",
    addition="text_time",
)
_REFINER_INPUTS = 1280 + 5 * 256  # pooled prompt and five time ids, where the base has six
STABLE_DIFFUSION_3 = ModelFamily(
    name="Stable Diffusion 3 / 3.5",
    pipelines=("StableDiffusion3Pipeline",),
    denoiser="transformer",
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    tokenizers=("tokenizer", "tokenizer_2", "tokenizer_3"),
    encoders=("clip_l", "clip_g", "t5xxl"),
    context_encoders=("clip_l", "clip_g", "t5xxl"),
    optional=("text_encoder_3", "tokenizer_3"),
    read_by=("A1111", "ComfyUI"),
    timesteps="logit_normal",
    flow=True,
    samplers=("euler", "dpmsolver++"),
    side_multiple=16,
    cuda_dtype="bfloat16",
)
FLUX = ModelFamily(
    name="Flux.1",
    pipelines=("FluxPipeline",),
    denoiser="transformer",
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    encoders=("clip_l", "t5xxl"),
    context_encoders=("t5xxl",),
    read_by=("diffusers", "ComfyUI"),
    timesteps="logit_normal",
    flow=True,
    samplers=("euler",),
    side_multiple=16,
    negative_prompts=False,
    cuda_dtype="bfloat16",
)
SANA = ModelFamily(
    name="Sana",
    pipelines=("SanaPipeline",),
    denoiser="transformer",
    text_encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    encoders=("gemma",),
    timesteps="logit_normal",
    flow=True,
    samplers=("dpmsolver++", "euler"),
    side_multiple=32,
    cuda_dtype="bfloat16",
)
FLUX_2_KLEIN = ModelFamily(
    name="Flux.2 Klein",
    pipelines=("Flux2KleinPipeline",),
    denoiser="transformer",
    text_encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    encoders=("qwen3_4b", "qwen3_8b"),
    second_from=4096,
    read_by=("ComfyUI",),
    timesteps="logit_normal",
    flow=True,
    samplers=("euler",),
    side_multiple=16,
    cuda_dtype="bfloat16",
)
FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3, FLUX, SANA, FLUX_2_KLEIN)


def family_named(name: str) -> ModelFamily:
    """The family of a `ModelFamily.name`. Raises StopIteration for an unknown one."""
    return next(family for family in FAMILIES if family.name == name)


def family_of(model_index: object, shown: str) -> ModelFamily:
    """The family of a pipeline by its model_index.json.

    shown: the model's path, without credentials, for messages. Raises UnsupportedModelError for another
    pipeline, with the known families.
    """
    class_name = model_index.get("_class_name") if isinstance(model_index, dict) else None
    for family in FAMILIES:
        if class_name in family.pipelines:
            return family
    what = (
        f"is a {class_name}" if isinstance(class_name, str) else "has no _class_name in its model_index.json"
    )
    raise UnsupportedModelError(f"the model {shown!r} {what}; words can be learned for {_known()}")


def check_parts(
    family: ModelFamily, denoiser: Mapping[str, object], scheduler: Mapping[str, object], shown: str
) -> None:
    """Refuses models that call themselves pipelines of a family, and compute something else.

    denoiser, scheduler: their configuration files. Raises UnsupportedModelError: for inpainting models, SDXL's refiner,
    schedulers with other noise levels (EDM, flow matching), and other predictions than epsilon and v.
    """
    what = _other_than(family, denoiser, scheduler)
    if what:
        raise UnsupportedModelError(
            f"the model {shown!r} is no text-to-image model of {family.name}: {what}; "
            f"words can be learned for {_known()}"
        )


def _other_than(
    family: ModelFamily, denoiser: Mapping[str, object], scheduler: Mapping[str, object]
) -> str | None:
    """What a model's parts have that models of the family don't."""
    if family.denoiser != "unet":
        return None
    channels = denoiser.get("in_channels", 4)
    if channels != 4:
        return f"its UNet takes {channels} channels" + (", as inpainting models do" if channels == 9 else "")
    addition = denoiser.get("addition_embed_type")
    if addition != family.addition:
        return f"its UNet's addition_embed_type is {addition}, not {family.addition}"
    if family.addition and denoiser.get("projection_class_embeddings_input_dim") == _REFINER_INPUTS:
        return "it is SDXL's refiner"
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith("EDM") or "FlowMatch" in kind:
        return f"its scheduler is an {kind}, whose noise levels aren't this family's"
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        return f"it predicts {prediction!r}"
    return None


def _known() -> str:
    return ", ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in FAMILIES)
