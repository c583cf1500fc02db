"""The families of models that words can be learned for: what is known of them before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from textinv_ray.util.errors import UserError


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

    @property
    def parts(self) -> tuple[str, ...]:
        """All folders that are read."""
        return (self.denoiser, "vae", *self.text_encoders, *self.tokenizers, "scheduler")


STABLE_DIFFUSION = ModelFamily(
    name="Stable Diffusion 1.x / 2.x",
    pipelines=("StableDiffusionPipeline",),
    denoiser="unet",
    text_encoders=("text_encoder",),
    tokenizers=("tokenizer",),
)
STABLE_DIFFUSION_XL = ModelFamily(
    name="Stable Diffusion XL",
    pipelines=("StableDiffusionXLPipeline",),
    denoiser="unet",
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
)
FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL)


def family_of(model_index: object, shown: str) -> ModelFamily:
    """The family of a pipeline by its model_index.json.

    shown: the model's path, without credentials, for messages. Raises UserError for another pipeline, with the known
    families.
    """
    class_name = model_index.get("_class_name") if isinstance(model_index, dict) else None
    for family in FAMILIES:
        if class_name in family.pipelines:
            return family
    known = ", ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in FAMILIES)
    what = (
        f"is a {class_name}" if isinstance(class_name, str) else "has no _class_name in its model_index.json"
    )
    raise UserError(f"the model {shown!r} {what}; words can be learned for {known}")
