"""The configuration of a job: one strict model per concern, YAML presets, and overrides.

    config = JobConfig.load("sd15", ["training.steps=2000", "service.workers=8"])

A preset holds what differs from the defaults here. A manifest row may override the fields that have a
column of the same name (`steps`, `learning_rate`, `batch_size`, `num_vectors`, ...).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from textinv_ray.config.training import Prompt, StoppingConfig, Strict, TrainingConfig, read_templates
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact
from textinv_ray.util.text import nearest

DEFAULT_PRESET = "mini"
_UNION_MEMBERS = ("int", "float", "constrained-int", "constrained-float")
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(Strict):
    """The frozen diffusion model that words are learned for."""

    path: str = Field("mini-sd", min_length=1)
    """A bundled name (`mini-sd`), a folder, an fsspec URI (`s3://...`) or a Hugging Face Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    variant: str | None = None
    """Weights variant of a Hub id or folder, such as `fp16`."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the frozen model. `auto`: float16 on CUDA, bfloat16 on CPUs with instructions for it (AMX,
    AVX512_BF16), float32 elsewhere. Words are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. `auto`: the worker's GPU when it has one."""


class DataConfig(Strict):
    """How training images are fetched and cut."""

    resolution: int | None = Field(None, ge=8, le=4096, multiple_of=8)
    """Side of the square training images in pixels; none: the model's own."""
    crop: Literal["center", "random"] = "center"
    """The square to cut after the shorter side was resized to the resolution."""
    crops_per_image: int = Field(4, ge=1, le=64)
    """With `crop: random`, how many seeded crops of each image are prepared (and their latents cached)."""
    flip_probability: Fraction = 0.5
    """How often a training image is mirrored. 0 for concepts with writing or a side."""
    allowed_protocols: tuple[str, ...] = ("file", "http", "https", "s3", "gs", "gcs", "abfs", "az", "hf")
    """fsspec protocols image URIs may use. Leave `file` out so that a manifest can't read local files."""
    max_image_pixels: int = Field(80_000_000, ge=1, le=170_000_000)
    """Larger images are refused before they are decoded (decompression bombs)."""
    download_timeout_s: float = Field(60.0, gt=0)
    """Seconds one image may take to arrive."""
    download_retry_s: float = Field(60.0, ge=0)
    """Seconds during which a download is tried again after throttling, resets, time-outs and 5xx."""

    @property
    def variants(self) -> int:
        """How many crops of each image there are: 1 for the centre crop."""
        return self.crops_per_image if self.crop == "random" else 1


class PackConfig(Strict):
    """How many concepts share one forward and backward pass."""

    size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Concepts learned side by side on one worker. `auto`: by a short trial of the first worker on such a device."""
    max_size: int = Field(64, ge=1)
    """The most that `auto` tries."""
    compile: bool = False
    """Compile the UNet for the step (torch.compile), where its gradient is then the same: a minute or more at each
    worker's start, for faster steps. A pack with free slots costs as much as a full one; one with more samples than
    its size x `training.batch_size` (rows with their own) isn't compiled. On CPUs it gains nothing."""


class PromptByProperty(Strict):
    """One prompt with `{}` for the word, by learnable property."""

    object: Prompt
    """For objects."""
    style: Prompt
    """For styles."""

    def of(self, learnable_property: str) -> str:
        """The prompt for "object" or "style"."""
        return self.style if learnable_property == "style" else self.object


class PromptsByProperty(Strict):
    """Prompts with `{}` for the word, by learnable property."""

    object: tuple[Prompt, ...] = Field(min_length=1)
    """For objects."""
    style: tuple[Prompt, ...] = Field(min_length=1)
    """For styles."""

    def of(self, learnable_property: str) -> tuple[str, ...]:
        """The prompts for "object" or "style"."""
        return self.style if learnable_property == "style" else self.object


class ReviewConfig(Strict):
    """The pictures people look at to accept a word, and how all pictures are sampled."""

    prompts: PromptsByProperty = PromptsByProperty(
        object=("a photo of {}",), style=("a painting in the style of {}",)
    )
    """What to render, unless the row has `prompts`."""
    images_per_prompt: int = Field(2, ge=1, le=64)
    """Pictures of each prompt, with seeds 0, 1, ... so that they can be compared."""
    sampler: Literal["dpmsolver++", "ddim"] = "dpmsolver++"
    """diffusers' DPM-Solver++ multistep (2nd order), or DDIM."""
    num_inference_steps: int = Field(20, ge=1, le=1000)
    """Sampling steps."""
    guidance_scale: float = Field(7.5, ge=1)
    """Classifier-free guidance; 1 is without."""
    sample_at: tuple[Fraction, ...] = (0.0, 0.5, 1.0)
    """Fractions of the training at which samples are logged; 0 shows the initializer."""


class ScoringConfig(Strict):
    """CLIP scores of the word and of its initializer."""

    model: str = Field("mini-clip", min_length=1)
    """A bundled name (`mini-clip`), a folder, an fsspec URI or a Hub id of a CLIPModel with its processor."""
    image_prompt: PromptByProperty = PromptByProperty(
        object="a photo of {}", style="a painting in the style of {}"
    )
    """clip_image_similarity compares samples of this prompt with the training images."""
    edit_prompts: PromptsByProperty = PromptsByProperty(
        object=("a photo of {} on the beach", "an oil painting of {}"),
        style=("a house in the style of {}", "a dog in the style of {}"),
    )
    """clip_text_similarity compares samples of each with the same prompt without the word."""
    num_images: int = Field(4, ge=1, le=1024)
    """Samples per prompt."""
    evaluate_at: tuple[Fraction, ...] = (1.0,)
    """Fractions of the training at which scores are logged."""


class ServiceConfig(Strict):
    """Workers, leases and where results go."""

    output: str = Field("results", min_length=1)
    """Folder or fsspec URI (`s3://...`) of the results."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Workers in all. `auto`: one per GPU of the cluster, or by its CPUs when it has none."""
    workers_per_trainer: int = Field(1, ge=1)
    """Workers that restart together when one dies: a node's GPUs, or 1 for single-GPU spot nodes."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs reserved for a worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs reserved for a worker. `auto`: 1 when the cluster has GPUs and `model.device` isn't `cpu`."""
    prepare_cpus: float = Field(1.0, gt=0)
    """CPUs for fetching and decoding images ahead of the workers."""
    heartbeat_s: float = Field(1.0, gt=0)
    """Seconds between a worker's signs of life."""
    lease_timeout_s: float = Field(60.0, gt=0)
    """Without a sign of life for this long, a worker's concepts go to others."""
    max_attempts: int = Field(3, ge=1)
    """A concept that took its worker down this often is put aside with its error."""
    checkpoint_every_s: float = Field(30.0, gt=0)
    """Seconds of work that a lost worker costs at most."""
    release_after_s: float = Field(60.0, gt=0)
    """A worker for which nothing is left but what others learn goes after this long, and frees its machine."""

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> ServiceConfig:
        if self.lease_timeout_s < 2 * self.heartbeat_s:
            raise ValueError(
                "lease_timeout_s must be at least twice heartbeat_s, or live workers lose their concepts"
            )
        return self


class TrackingConfig(Strict):
    """The MLflow view of the results."""

    enabled: bool = True
    """Whether to write to MLflow at all."""
    uri: str | None = None
    """Tracking server or database; none: MLFLOW_TRACKING_URI, else `mlflow.db` beside the output."""
    experiment: str = Field("textinv", min_length=1)
    """Name of the MLflow experiment."""


class JobConfig(Strict):
    """Everything about a job except its manifest."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    stopping: StoppingConfig = StoppingConfig()
    pack: PackConfig = PackConfig()
    review: ReviewConfig = ReviewConfig()
    scoring: ScoringConfig = ScoringConfig()
    service: ServiceConfig = ServiceConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def load(cls, name_or_path: str | None = None, overrides: Sequence[str] = ()) -> JobConfig:
        """A preset's name or a YAML file (none: `mini`), with `section.field=value` overrides (YAML values).

        Raises UserError naming every wrong field, with the nearest known name for an unknown one.
        """
        source, text = _read(name_or_path or DEFAULT_PRESET)
        data = _parse_yaml(text, source)
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
    def from_dict(cls, data: dict[str, Any], source: str = "configuration") -> JobConfig:
        """Validates plain data, as `load` does. Raises UserError."""
        try:
            # By way of JSON, because only there may a strict model read a list as a tuple.
            return cls.model_validate_json(json.dumps(_merged(cls().to_dict(), data), default=str))
        except ValidationError as error:
            lines = dict.fromkeys(_explain(item) for item in error.errors() if not _follows(item))
            raise UserError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None

    def override(self, overrides: Sequence[str]) -> JobConfig:
        """This with `section.field=value` overrides, as `load` takes them. Raises UserError."""
        data = self.to_dict()
        for override in overrides:
            _set(data, override)
        return self.from_dict(data, "--set") if overrides else self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration to print and to store: URIs without their credentials."""
        data = self.to_dict()
        for section, field in (
            ("model", "path"),
            ("scoring", "model"),
            ("service", "output"),
            ("tracking", "uri"),
        ):
            if data[section][field]:
                data[section][field] = redact(data[section][field])
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)

    def result_inputs(self) -> dict[str, Any]:
        """What determines a concept's result: not where it is computed, how fast, nor how images arrive."""
        part = self.model_dump(
            mode="json",
            exclude={
                "model": {"device"},
                "data": {"allowed_protocols", "max_image_pixels", "download_timeout_s", "download_retry_s"},
                "pack": True,
                "service": True,
                "tracking": True,
            },
        )
        # Settings of a rule that isn't used change nothing, and results from before there were rules stay valid.
        stopping = part.pop("stopping")
        if self.stopping.rule != "none":
            part["stopping"] = {name: stopping[name] for name in ("rule", "min_steps", self.stopping.rule)}
        return part


def preset_names() -> list[str]:
    """Names that `JobConfig.load` knows."""
    return sorted(
        {path.stem for folder in _preset_folders() for path in folder.glob("*.yaml") if _is_preset(path)}
    )


def _is_preset(path: Path) -> bool:
    """Other YAML files (for clusters) may lie in configs/ too; a preset has sections of JobConfig only."""
    sections = re.findall(r"^([A-Za-z_]\w*):", path.read_text(encoding="utf-8"), re.MULTILINE)
    return bool(sections) and set(sections) <= set(JobConfig.model_fields)


def _preset_folders() -> list[Path]:
    """`configs/` of the source tree, and its copy in an installed package."""
    package = Path(__file__).resolve().parents[1]
    return [folder for folder in (package.parent / "configs", package / "configs") if folder.is_dir()]


def _read(name_or_path: str) -> tuple[str, str]:
    """(what to call it in messages, its text). A path has a slash or ends in .yaml or .yml."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise UserError(f"configuration file {name_or_path!r} doesn't exist")
        return name_or_path, path.read_text(encoding="utf-8")
    for folder in _preset_folders():
        path = folder / f"{name_or_path}.yaml"
        if path.is_file() and _is_preset(path):
            return f"configuration {name_or_path!r}", path.read_text(encoding="utf-8")
    known = preset_names()
    raise UserError(
        f"no configuration {name_or_path!r}{nearest(name_or_path, known)} "
        f"(presets: {', '.join(known)}; or give the path of a .yaml file)"
    )


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-3 as text; here it is a number, as everybody expects."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {error}") from None


def _set(data: dict[str, Any], override: str) -> None:
    """Puts "section.field=value" into `data`. Unknown names are left for the validation to explain."""
    key, equals, value = override.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise UserError(f"--set {override!r}: write it as section.field=value, e.g. --set training.steps=500")
    target = data
    for name in names[:-1]:
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {override!r}: {name!r} has no fields of its own")
        target = inner
    target[names[-1]] = _parse_yaml(value, f"--set {override!r}")


def _merged(defaults: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """`data` over `defaults`, section by section, so that a preset may name one field of a pair."""
    merged = dict(defaults)
    for name, value in data.items():
        inner = defaults.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _follows(item: Any) -> bool:
    """Whether an error only follows from another: a list that is "too short" since its items were refused."""
    return item["type"] == "too_short" and bool(item["input"])


def _explain(item: Any) -> str:
    """One line for one of pydantic's errors: where, what was given, what is wrong."""
    path = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        fields = list(_fields_at(path[:-1]))
        what = "section" if len(path) == 1 else "field"
        return f"{'.'.join(path)}: no such {what}{nearest(path[-1], fields)} (known: {', '.join(fields)})"
    # Members of a union have a place of their own in pydantic's path, which is nobody's field.
    path = [part for part in path if part not in _UNION_MEMBERS and not part.startswith("literal[")]
    if item["type"] == "value_error":
        return f"{'.'.join(path)}: {item['ctx']['error']}"
    message = item["msg"]
    if item["type"] == "string_pattern_mismatch":
        message = "must contain {} where the word goes"
    given = item["input"]
    return f"{'.'.join(path)}: {message[0].lower()}{message[1:]}, not {given!r}"


def _fields_at(path: Sequence[str]) -> Sequence[str]:
    model: type[BaseModel] = JobConfig
    for name in path:
        model = model.model_fields[name].annotation  # type: ignore[assignment]
    return list(model.model_fields)
