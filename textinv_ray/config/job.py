"""The configuration of a job: a strict model per section, YAML presets, and overrides.

    config = JobConfig.load("sd15", ["training.steps=2000", "service.workers=8"])

A preset holds only what differs from the defaults here. A manifest row overrides the fields that have a column of
the same name (`steps`, `learning_rate`, `batch_size`, `num_vectors`, ...).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails

from textinv_ray.config.model import ModelConfig
from textinv_ray.config.presets import preset_file
from textinv_ray.config.service import ServiceConfig
from textinv_ray.config.training import (
    Prompt,
    PromptsByProperty,
    StoppingConfig,
    Strict,
    TrainingConfig,
    read_templates,
)
from textinv_ray.util import yaml_files
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import brief, redact_values
from textinv_ray.util.text import nearest, one_line

DEFAULT_PRESET = "mini"
_UNION_MEMBERS = ("int", "float", "constrained-int", "constrained-float")
Fraction = Annotated[float, Field(ge=0, le=1)]
Sections = dict[str, dict[str, JsonValue]]
"""A configuration as plain data: section -> field -> value."""


class DataConfig(Strict):
    """How training images are fetched, cropped and flipped."""

    resolution: int | None = Field(None, ge=8, le=4096, multiple_of=8)
    """Side of the square training images in pixels; null: the model's resolution."""
    fit: Literal["crop", "pad", "bucket"] = "crop"
    """How images become what the model sees. `crop`: a square is cut out. `pad`: the longer side is resized to the
    resolution, and the image stands in the middle of a grey square, whose grey has no weight in the loss. `bucket`: all
    images of a concept are cut to one of SDXL's shapes, scaled to the resolution: the one nearest to the median of
    their ratios of sides. Concepts of one shape share a pass."""
    crop: Literal["center", "random"] = "center"
    """Which part is cropped after the image was resized so that it just covers the square, or the bucket's shape. `pad`
    crops nothing."""
    crops_per_image: int = Field(4, ge=1, le=64)
    """With `crop: random`: crops of each image. They are drawn from the seed once, and their latents cached."""
    alpha_masks: bool = False
    """Whether the alpha channel of an image is its mask, where the manifest gives none: what is transparent isn't the
    concept. (Transparency is put on white in any case.)"""
    flip_probability: Fraction = 0.5
    """Probability that a training image is mirrored. Use 0 for concepts with text or with a left and a right."""
    holdout: int = Field(0, ge=0, le=1000)
    """Images of each concept that nothing is learned from, drawn by the concept's seed. Scores then compare pictures
    with these; 0: with the training images. A concept without an image more than this fails."""
    allowed_protocols: tuple[str, ...] = ("file", "http", "https", "s3", "gs", "gcs", "abfs", "az", "hf")
    """fsspec protocols that image URIs may use. Without `file`, a manifest can't read local files."""
    max_image_pixels: int = Field(80_000_000, ge=1, le=170_000_000)
    """Images with more pixels are rejected before they are decoded (decompression bombs)."""
    refuse_private_addresses: bool = False
    """Refuses http and https URIs, and redirects, that lead to addresses of private networks, this machine or its
    neighbours (link-local). Set it if strangers write your manifests."""
    download_timeout_s: float = Field(60.0, gt=0)
    """Time limit for the whole fetch of one image, in seconds, redirects included. It holds for local files as well."""
    download_retry_s: float = Field(60.0, ge=0)
    """For how many seconds a download is retried after throttling, resets, time-outs and 5xx responses. Concepts whose
    images can't be reached at once are tried again after all others were prepared."""

    @property
    def variants(self) -> int:
        """Number of crops of each image, A: 1 for the center crop, and where nothing is cropped."""
        return self.crops_per_image if self.crop == "random" and self.fit != "pad" else 1


class PackConfig(Strict):
    """How many concepts share a forward and backward pass."""

    size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Concepts that one worker learns at a time. `auto`: measured by the first worker on each kind of device."""
    max_size: int = Field(64, ge=1)
    """The largest size that `auto` tries."""
    compile: bool = False
    """Compile the UNet for training steps with torch.compile, if the compiled gradient is right. It takes a minute or
    more at each worker's start and makes steps faster. A pack with free slots then costs as much as a full one. Packs
    with more samples than size x `training.batch_size` (rows with a larger batch_size) aren't compiled. On CPUs there
    is no gain."""


class PromptByProperty(Strict):
    """A prompt with `{}` for the word, for each learnable property."""

    object: Prompt
    """For objects."""
    style: Prompt
    """For styles."""

    def of(self, learnable_property: str) -> str:
        """The prompt for "object" or "style"."""
        return self.style if learnable_property == "style" else self.object


class ReviewConfig(Strict):
    """The samples that people review, and the sampler of all images."""

    prompts: PromptsByProperty = PromptsByProperty(
        object=("a photo of {}", "a photo of {} on the beach", "an oil painting of {}"),
        style=("a painting in the style of {}", "a house in the style of {}", "a dog in the style of {}"),
    )
    """Prompts of the review samples, for rows without `prompts`: the word itself, then edits."""
    resolution: int | None = Field(None, ge=8, le=4096, multiple_of=8)
    """Side of all pictures in pixels; null: the model's resolution."""
    images_per_prompt: int = Field(2, ge=1, le=64)
    """Samples of each prompt, with seeds 0, 1, ..., so that steps and concepts can be compared."""
    sampler: Literal["dpmsolver++", "ddim", "euler"] = "dpmsolver++"
    """`dpmsolver++`: multistep DPM-Solver++ of order 2 (Lu et al. 2022); `ddim`: DDIM (Song et al. 2021); `euler`:
    Euler's method on the probability flow. Models of flow matching have no `ddim`, and Flux.1 has `euler` only."""
    num_inference_steps: int = Field(20, ge=1, le=1000)
    """Number of sampling steps."""
    guidance_scale: float = Field(7.5, ge=1)
    """Scale of classifier-free guidance; 1 is no guidance."""
    sample_at: tuple[Fraction, ...] = (0.0, 0.5, 1.0)
    """Fractions of `training.steps` at which samples are stored; 0 is the initializer. Those of the start and of the
    last step always are."""


class ScoringConfig(Strict):
    """The CLIP scores of words and of their initializers."""

    model: str = Field("mini-clip", min_length=1)
    """A bundled name (`mini-clip`), a folder, an fsspec URI or a Hub id of a CLIPModel with its processor."""
    judge: Annotated[str, Field(min_length=1)] | None = None
    """A second image encoder, which has no part in the choice of a word and whose scores are reported beside: a bundled
    name (`mini-judge`), or a folder, URI or Hub id of a DINO, DINOv2, DINOv3, ViT, CLIP or SigLIP model. null: none."""
    image_prompt: PromptByProperty = PromptByProperty(
        object="a photo of {}", style="a painting in the style of {}"
    )
    """Prompt whose samples `clip_image_similarity` compares with the training images."""
    edit_prompts: PromptsByProperty = PromptsByProperty(
        object=("a photo of {} on the beach", "an oil painting of {}"),
        style=("a house in the style of {}", "a dog in the style of {}"),
    )
    """Editing prompts: `clip_text_similarity` compares samples of each with that prompt without the word."""
    num_images: int = Field(4, ge=1, le=1024)
    """Samples per prompt, with seeds 0, 1, ..."""
    evaluate_at: tuple[Fraction, ...] = (1.0,)
    """Fractions of `training.steps` at which scores are computed. They always are at the start and at the last step."""


class TrackingConfig(Strict):
    """The mirror of the results in MLflow."""

    enabled: bool = True
    """Whether to write to MLflow."""
    uri: str | None = None
    """Tracking server or database; null: MLFLOW_TRACKING_URI, else a database `mlflow.db` in the output, or in the
    working directory when the output is remote."""
    experiment: str = Field("textinv", min_length=1)
    """Name of the MLflow experiment."""
    loss_points: int = Field(200, ge=1)
    """The most points of a concept's loss in MLflow, each a mean over equally many steps; history.parquet has all
    steps."""


class JobConfig(Strict):
    """The whole configuration of a job."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    stopping: StoppingConfig = StoppingConfig()
    pack: PackConfig = PackConfig()
    review: ReviewConfig = ReviewConfig()
    scoring: ScoringConfig = ScoringConfig()
    service: ServiceConfig = ServiceConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _compiles_one_shape(self) -> JobConfig:
        if self.pack.compile and self.data.fit == "bucket":
            raise ValueError(
                "pack.compile: the UNet is compiled for one shape; leave it out, or data.fit=bucket"
            )
        return self

    @classmethod
    def load(cls, name_or_path: str | None = None, overrides: Sequence[str] = ()) -> JobConfig:
        """Reads a preset, or a YAML file, and applies `section.field=value` overrides (values in YAML).

        name_or_path: None is the preset `mini`; a path contains a slash or ends in .yaml or .yml.
        Raises UserError that lists every invalid field, with the nearest known name for unknown ones.
        """
        source, data = _read(name_or_path or DEFAULT_PRESET)
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise UserError(f"{source}: expected sections such as 'training:', found {type(data).__name__}")
        for override in overrides:
            _set(data, override)
        training = data.get("training")
        if isinstance(training, dict) and isinstance(training.get("templates"), str):
            training["templates"] = read_templates(training["templates"])
        return cls.from_dict(data, source=source if not overrides else f"{source} with --set")

    @classmethod
    def from_dict(cls, data: Mapping[str, object], source: str = "configuration") -> JobConfig:
        """Validates plain data: sections or parts of them, over the defaults. Raises UserError, as `load` does."""
        try:
            # Through JSON, because a strict model reads lists as tuples only there
            return cls.model_validate_json(json.dumps(_merged(cls().to_dict(), data), default=str))
        except ValidationError as error:
            lines = dict.fromkeys(_explain(item) for item in error.errors() if not _follows(item))
            raise UserError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None

    def override(self, overrides: Sequence[str]) -> JobConfig:
        """This configuration with `section.field=value` overrides, as in `load`. Raises UserError."""
        data: dict[str, object] = dict(self.to_dict())
        for override in overrides:
            _set(data, override)
        return self.from_dict(data, "--set") if overrides else self

    def to_dict(self) -> Sections:
        """Plain JSON data, which `from_dict` reads."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The complete configuration as YAML, to print and to store: credentials in URIs are removed."""
        return str(
            yaml.safe_dump(redact_values(self.to_dict()), sort_keys=False, allow_unicode=True, width=100)
        )

    def result_inputs(self) -> Sections:
        """The settings that a concept's result depends on, without those of workers, downloads and MLflow."""
        part: Sections = self.model_dump(
            mode="json",
            exclude={
                "model": {"device"},
                "data": {
                    "allowed_protocols",
                    "max_image_pixels",
                    "refuse_private_addresses",
                    "download_timeout_s",
                    "download_retry_s",
                },
                "pack": True,
                "service": True,
                "tracking": True,
            },
        )
        for section, name in _LATER_FIELDS:
            settings = getattr(self, section)
            if getattr(settings, name) == type(settings).model_fields[name].default:
                del part[section][name]
        # Only the settings of the rule that is used
        stopping = part.pop("stopping")
        if self.stopping.rule != "none":
            part["stopping"] = {name: stopping[name] for name in ("rule", "min_steps", self.stopping.rule)}
        return part


_LATER_FIELDS = (
    ("model", "config"),
    ("model", "prediction_type"),
    ("model", "vae_dtype"),
    ("data", "holdout"),
    ("data", "fit"),
    ("data", "alpha_masks"),
    ("review", "resolution"),
    ("scoring", "judge"),
    ("training", "timesteps"),
    ("training", "unmasked_weight"),
    ("training", "noise_offset"),
    ("training", "caption_dropout"),
    ("training", "loss_weight"),
    ("training", "min_snr_gamma"),
    ("training", "encoders"),
    ("training", "encoder_rates"),
    ("training", "style"),
)
"""(section, field) of settings that came later: left out at their default, so that earlier fingerprints hold."""


def _read(name_or_path: str) -> tuple[str, object]:
    """(name for messages, content) of a preset or file. Raises UserError when there is none."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
        if not path.exists():
            raise UserError(f"configuration file {name_or_path!r} doesn't exist")
        return name_or_path, yaml_files.read(path, name_or_path)
    source = f"configuration {name_or_path!r}"
    return source, yaml_files.read(preset_file(name_or_path), source)


def _set(data: dict[str, object], override: str) -> None:
    """Applies "section.field=value" to `data` in place. Unknown names are reported later, by the validation."""
    key, equals, value = override.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise UserError(
            f"--set {brief(override)}: write it as section.field=value, e.g. --set training.steps=500"
        )
    target = data
    for name in names[:-1]:
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {brief(override)}: {name!r} has no fields of its own")
        target = inner
    target[names[-1]] = yaml_files.parse(value, f"--set {brief(override)}")


def _merged(defaults: Mapping[str, object], data: Mapping[str, object]) -> dict[str, object]:
    """`defaults` with the values of `data`, merged at every level: a preset may set one field of a nested section."""
    merged = dict(defaults)
    for name, value in data.items():
        inner = defaults.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _follows(item: ErrorDetails) -> bool:
    """Whether an error is a consequence of another: a list is "too short" because its items were invalid."""
    return item["type"] == "too_short" and bool(item["input"])


def _explain(item: ErrorDetails) -> str:
    """One of pydantic's errors in a line: the field, what is wrong, and the value."""
    path = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        fields = list(_fields_at(path[:-1]))
        what, near = "section" if len(path) == 1 else "field", nearest(path[-1], fields)
        return f"{one_line('.'.join(path), 80)}: no such {what}{near} (known: {', '.join(fields)})"
    # pydantic's path names members of unions, too; they aren't fields
    path = [part for part in path if part not in _UNION_MEMBERS and not part.startswith("literal[")]
    if item["type"] == "value_error":
        return ": ".join(filter(None, (".".join(path), str(item["ctx"]["error"]))))
    message = item["msg"]
    if item["type"] == "string_pattern_mismatch":
        message = "must contain {} where the word goes"
    given = item["input"]
    return f"{'.'.join(path)}: {message[0].lower()}{message[1:]}, not {brief(given)}"


def _fields_at(path: Sequence[str]) -> Sequence[str]:
    model: type[BaseModel] = JobConfig
    for name in path:
        model = model.model_fields[name].annotation  # type: ignore[assignment]
    return list(model.model_fields)
