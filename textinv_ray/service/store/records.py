"""What the store keeps of a job and of each concept: job.json, result.json, `failed/<id>.json`, `reviews/<id>.json`.

Every field is defined here once. `result.json` is a `Result` as it stands; the columns of `results.parquet`, the
parameters and metrics in MLflow, the means of `textinv status` and the table in the documentation are made from the
fields' types, docstrings and markers (`Use`, `Unit`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import LearnableProperty
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.places import checked_id
from textinv_ray.util.redact import message
from textinv_ray.util.statistics import Mean, mean_of
from textinv_ray.util.text import one_line

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Option = str | Integer | float | tuple[Integer, ...]
"""Value of a training setting that has a column in the manifest."""


StopReason = Literal["steps", "dvar", "clip"]


class Use(Enum):
    """Where a field of `Result` appears besides result.json."""

    COLUMN = "a column of results.parquet"
    PARAM = "a parameter of the concept's run in MLflow"
    METRIC = "a metric of the concept's run in MLflow, at its last step"
    SCORE = "a score: its mean over concepts is a metric of the job's run and part of `textinv status`"


@dataclass(frozen=True)
class Unit:
    """The unit of a number, with the range where it isn't checked (rounding may pass its ends)."""

    text: str


Count = Annotated[int, Field(ge=0, lt=2**31)]
Loss = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0), Unit("s")]
Time = Annotated[float, Field(ge=0, lt=1e11), Unit("s since 1970-01-01 UTC")]
Message = Annotated[str, BeforeValidator(lambda text: message(text) if isinstance(text, str) else text)]
"""A message of others, cleaned before anything else is asked of it: half a surrogate pair couldn't be written."""
ConceptId = Annotated[str, AfterValidator(checked_id)]
"""It names a folder and files, so it is checked wherever it is read."""
Cosine = Annotated[float, Unit("cosine, in [-1, 1]")]


class Record(BaseModel):
    """A JSON file of the store. Immutable; unknown fields are ignored when it is read."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def to_bytes(self) -> bytes:
        """UTF-8 JSON."""
        return self.model_dump_json(indent=1).encode() + b"\n"


class OfConcept(Record):
    """A record of one concept, in a file or folder with its name."""

    concept_id: ConceptId
    """Name of the concept."""


class Result(OfConcept):
    """A finished concept: `concepts/<concept_id>/result.json`."""

    concept_id: Annotated[ConceptId, Use.COLUMN]
    """Name of the concept; unique in its manifest."""
    status: Annotated[Literal["done"], Use.COLUMN] = "done"
    """`done`; in results.parquet also `failed`."""
    placeholder_token: Annotated[str, Use.COLUMN]
    """The learned word in prompts, such as `<cat-toy>`."""
    initializer_token: Annotated[str, Use.COLUMN, Use.PARAM]
    """Word or phrase of the vocabulary that learning started from; without one, the value of `init_from`."""
    learnable_property: Annotated[LearnableProperty, Use.COLUMN, Use.PARAM]
    """`object` or `style`."""
    num_vectors: Annotated[Count, Field(ge=1), Use.COLUMN, Use.PARAM]
    """Embedding vectors of the word, V."""
    embedding_dims: dict[str, Annotated[Count, Field(ge=1)]]
    """Numbers in each vector by text encoder, such as `clip_l`, in the order of the columns of `vectors`."""
    steps: Annotated[Count, Use.COLUMN, Use.PARAM]
    """Optimizer steps that were taken."""
    stopped: Annotated[StopReason, Use.COLUMN, Use.PARAM]
    """What ended learning: `steps` (all were taken) or the stopping rule."""
    best_step: Annotated[Count | None, Use.COLUMN, Use.PARAM]
    """With `stopping.rule: clip`, the step whose vectors were kept; null with other rules."""
    learning_rate: Annotated[float, Field(gt=0), Use.PARAM]
    """Adam's step size, or the tangent of the angle of a directional step."""
    batch_size: Annotated[Count, Field(ge=1), Use.PARAM]
    """Samples per step."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Seed of all random draws of training."""
    images: Count
    """Number of training images."""
    heldout_images: Count = 0
    """Number of images that nothing was learned from, and that scores compare pictures with (`data.holdout`)."""
    templates: Count
    """Number of training prompts."""
    captions: Count
    """Number of images with a caption."""
    options: dict[str, Option]
    """Training settings beyond plain textual inversion, where they differ from their defaults. In MLflow each is a
    parameter."""
    image_uris: tuple[str, ...]
    """Where the training images came from, without credentials."""
    clip_image_similarity_initializer: Annotated[Cosine | None, Use.COLUMN, Use.METRIC, Use.SCORE]
    """`clip_image_similarity` of the initializer, before learning."""
    clip_image_similarity: Annotated[Cosine | None, Use.COLUMN, Use.SCORE]
    """Mean CLIP cosine between samples of `scoring.image_prompt` and the training images, or the held-out images where
    there are any; null without samples."""
    clip_text_similarity_initializer: Annotated[Cosine | None, Use.COLUMN, Use.METRIC, Use.SCORE]
    """`clip_text_similarity` of the initializer, before learning."""
    clip_text_similarity: Annotated[Cosine | None, Use.COLUMN, Use.SCORE]
    """Mean CLIP cosine between samples of each editing prompt and that prompt without the word; null without
    editing prompts."""
    judge_similarity_initializer: Annotated[Cosine | None, Use.COLUMN, Use.METRIC, Use.SCORE] = None
    """`judge_similarity` of the initializer, before learning."""
    judge_similarity: Annotated[Cosine | None, Use.COLUMN, Use.SCORE] = None
    """As `clip_image_similarity`, by `scoring.judge`, which has no part in the choice of the word; null without one."""
    final_loss: Annotated[Loss | None, Use.COLUMN]
    """Mean denoising loss of the last tenth of the steps; null when no step had a finite loss."""
    norms: Annotated[dict[str, tuple[Annotated[float, Field(ge=0)], ...]], Use.COLUMN]
    """Euclidean norm of each vector, (V,), by text encoder."""
    nearest_words: Annotated[dict[str, tuple[str, ...]], Use.COLUMN]
    """Whole words of the vocabulary by falling cosine with the mean of the vectors, by text encoder."""
    seconds: Annotated[Seconds, Use.COLUMN, Use.METRIC]
    """The concept's share of its workers' time."""
    review_seconds: Annotated[Seconds, Use.COLUMN]
    """Part of `seconds` that rendered and scored samples."""
    stopping_seconds: Annotated[Seconds, Use.COLUMN]
    """Part of `seconds` that rendered and scored pictures for `stopping.rule: clip`."""
    tags: Annotated[dict[str, str], Use.COLUMN]
    """The row's own labels. In MLflow each is a tag."""
    finished_at: Time
    """When the result was made."""
    sample_steps: tuple[Count, ...]
    """Steps that have a grid of samples, ascending."""
    sample_prompts: tuple[str, ...]
    """Prompts of a grid's rows, with `{}` for the word."""
    images_per_prompt: Count
    """Columns of a grid."""
    word_sha256: str = ""
    """SHA-256 of learned_embeds.safetensors: a word that is missing or damaged is made again."""
    fingerprint: str
    """Digest of the row, the configuration, the model and the bytes of the images."""
    row_fingerprint: str
    """The same with image URIs in place of their bytes: what a restart compares without reading images."""
    state_fingerprint: str
    """Digest of what the optimisation depends on: a state of the same may be continued."""
    images_mtime_digest: str
    """Digest of the sizes and modification times of local images; empty when none is local."""

    @property
    def embedding_dim(self) -> int:
        """D: numbers in each vector, over all text encoders."""
        return sum(self.embedding_dims.values())

    @property
    def nearest_text(self) -> str:
        """`nearest_words` in a line; those of several text encoders by their names."""
        lines = {name: ", ".join(words) for name, words in self.nearest_words.items()}
        return (
            "; ".join(f"{name}: {line}" for name, line in lines.items())
            if len(lines) > 1
            else "".join(lines.values())
        )

    @property
    def clip_image_similarity_gain(self) -> float | None:
        """`clip_image_similarity` over that of the initializer; none where one of them wasn't computed."""
        before, after = self.clip_image_similarity_initializer, self.clip_image_similarity
        return None if before is None or after is None else after - before

    @property
    def is_worse_than_initializer(self) -> bool:
        """Whether the learned word is less similar to the training images than the word it started from."""
        gain = self.clip_image_similarity_gain
        return gain is not None and gain < 0

    @property
    def key(self) -> Key:
        """What the planner recognises this result by."""
        return Key(self.row_fingerprint, self.images_mtime_digest)


class Failure(OfConcept):
    """A concept that was given up: `failed/<concept_id>.json`. The next run tries it again."""

    error: Message
    """Why, in one line."""
    time: Time
    """When it was given up."""
    quarantined: bool
    """Whether it was put aside because workers were lost with it, `service.max_attempts` times."""


Verdict = Literal["approved", "rejected", "undecided"]
"""What a reviewer says of a word; `undecided` takes back what was said before."""


class Opinion(Record):
    """What one reviewer said of one word at one time."""

    verdict: Verdict
    """`approved`, `rejected`, or `undecided` (taken back)."""
    fingerprint: str
    """`fingerprint` of the result whose pictures were seen."""
    reviewer: str
    """Who said it."""
    decided_at: Time
    """When it was said."""
    note: str = ""
    """Why, in the reviewer's words."""


class Decision(Opinion, OfConcept):
    """Whether people accept a concept's word: `reviews/<concept_id>.json`. The last opinion counts."""

    earlier: tuple[Opinion, ...] = ()
    """What was said before, of this word or of one that was learned before it, the oldest first."""

    def verdict_on(self, result: Result) -> Verdict:
        """What holds for a result: a word that was learned anew is undecided again."""
        return self.verdict if self.fingerprint == result.fingerprint else "undecided"


WAVES = "waves.json"


class WavesRecord(Record):
    """What the concepts after a job's first part begin from: waves.json. See `intake/waves.py`."""

    key: str
    """Digest of the settings, the model and the size of the first part: with others, all is done anew."""
    first: tuple[ConceptId, ...]
    """The concepts of the first part, sorted."""
    predictor: str
    """Name of the predictor's file in the output; empty when it was left out."""
    words: Count
    """Words that the predictor was fitted on."""
    why: Message
    """Why the predictor was left out; empty when it wasn't."""


class JobRecord(Record):
    """A job: job.json. No URI in it has credentials."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
    """Random; stays for as long as the output does."""
    name: str
    """Name of the job's run in MLflow: the last part of the output's path."""
    started_at: Time
    """When the first run with these settings began."""
    begun_at: Time
    """When the last run began."""
    ended_at: Time | None = None
    """When the last run ended; null while it runs, or when it was killed."""
    exit_code: int | None = None
    """Of the last run; null while `ended_at` is."""
    manifest: str
    """URI of the manifest."""
    manifest_rows: Count
    """Concepts in the manifest."""
    manifest_digest: str
    """Digest of the fingerprints of all planned rows."""
    done_before: Count
    """Concepts that had their result when the last run began."""
    to_replace: Count
    """Concepts whose result, of other settings or images, the last run set out to replace."""
    config_digest: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
    """Digest of `determines_results`."""
    configuration: dict[str, JsonValue]
    """The resolved configuration: `JobConfig.to_dict()`."""
    determines_results: dict[str, JsonValue]
    """The part of the configuration that results depend on."""
    source: str = ""
    """The program that began the last run, such as `invert_many.py`."""
    user: str = ""
    """Who began it."""
    git_commit: str = ""
    """Commit of the source tree that it ran from; empty outside of one."""
    versions: dict[str, str]
    """Versions of Python and of the packages that results may depend on."""
    mlflow_is_behind: bool
    """Whether MLflow lacks something that the store has."""

    def config(self, source: str) -> JobConfig:
        """The configuration, validated. Raises UserError, which names `source`."""
        return JobConfig.from_dict(dict(self.configuration), source)


SomeRecord = TypeVar("SomeRecord", bound=Record)
SomeOfConcept = TypeVar("SomeOfConcept", bound=OfConcept)


def parse(kind: type[SomeRecord], data: bytes) -> SomeRecord:
    """A record from its JSON. Raises ValueError, with the first field that is wrong."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = one_line(".".join(map(str, first["loc"])), 100)
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def fields_for(use: Use) -> tuple[str, ...]:
    """Names of the fields of `Result` with this use, in order."""
    return tuple(name for name, field in Result.model_fields.items() if use in field.metadata)


def range_of(field: FieldInfo) -> str:
    """Unit and range of a field's numbers, such as "s, >= 0"; empty when it has neither."""
    marks = [*field.metadata, *_inner_metadata(field.annotation)]
    units = [mark.text for mark in marks if isinstance(mark, Unit)]
    bounds = [f">= {mark.ge}" for mark in marks if isinstance(mark, Ge)][-1:]  # the last one is the narrowest
    bounds += [f"> {mark.gt}" for mark in marks if isinstance(mark, Gt)]
    return ", ".join([*units, *bounds])


def _inner_metadata(annotation: object) -> list[object]:
    """What `Annotated` says of the members of a union or the items of a tuple."""
    found: list[object] = []
    for part in get_args(annotation):
        if get_origin(part) is Annotated:
            for mark in get_args(part)[1:]:
                found += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    return found


SCORES = fields_for(Use.SCORE)
"""The scores of a result, each with its value for the initializer before it."""
_COLUMNS, _PARAMS, _METRICS = fields_for(Use.COLUMN), fields_for(Use.PARAM), fields_for(Use.METRIC)


def scores_of(result: Result) -> dict[str, float | None]:
    """The scores of a result by name, in the order of SCORES."""
    return {name: getattr(result, name) for name in SCORES}


def mean_scores(results: Collection[Result]) -> dict[str, Mean]:
    """Mean of each score, with its confidence interval, over the results that have it; scores that none has are
    left out."""
    means = {}
    for name in SCORES:
        values = [score for result in results if (score := getattr(result, name)) is not None]
        if values:
            means[name] = mean_of(values)
    return means


def worse_than_initializer(results: Collection[Result]) -> list[Result]:
    """Results whose word is less similar to the training images than its initializer, the worst first."""
    worse = [result for result in results if result.is_worse_than_initializer]
    return sorted(worse, key=lambda result: result.clip_image_similarity_gain or 0.0)


def params(result: Result) -> Mapping[str, object]:
    """MLflow parameters of a concept's run, as result.json writes them. What is null is left out."""
    found = {name: getattr(result, name) for name in _PARAMS} | result.options
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if value is not None
    }


def metrics(result: Result) -> Mapping[str, float]:
    """MLflow metrics of a concept's run beside those of its history. What is null is left out."""
    found = {name: getattr(result, name) for name in _METRICS}
    found["clip_image_similarity_gain"] = result.clip_image_similarity_gain
    return {name: value for name, value in found.items() if value is not None}
