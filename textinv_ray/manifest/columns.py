"""The columns of a manifest: the one place where they are listed.

`Row` declares each column: the type of its values, and a `Meaning` with everything else. `COLUMNS` is made from it.
The schema check, the checks of ranges and choices, preparation, fingerprints, `textinv manifest`, the options in
results, and the table in the documentation all come from `COLUMNS`.

To add a column: declare it in `Row`, give `ConceptSettings` a field of the same name, and write the code that acts on
the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Annotated, Any, Literal, TypedDict, cast, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import MAX_PROMPT_LENGTH
from textinv_ray.manifest.kinds import OF_TYPE, ImageSource, Kind

ReadBy = Literal["learning", "review", "labels"]
"""What reads a column, and so which fingerprints its value is part of:

- `learning`: the optimisation. Part of all fingerprints.
- `review`: what comes after it, such as samples and scores, and the names of outputs. Not part of the state
  fingerprint: when it changes, learning continues from its checkpoint.
- `labels`: nothing that affects the result. Part of no fingerprint.
"""


@dataclass(frozen=True)
class Meaning:
    """What the type of a column does not say about it."""

    text: str
    """What the column is, in a sentence or two of Markdown."""
    read_by: ReadBy
    overrides: str = ""
    """Dotted name of the configuration field that the value replaces, such as `training.steps`. The column's range and
    choices are those of the field."""
    default: str = ""
    """What applies without a value, in Markdown; empty: the configuration field that the column overrides."""
    is_option: bool = False
    """Whether the column goes beyond plain textual inversion. Results list it under `options`, and MLflow as a
    parameter, if it is not the default. (Results have fields of their own for the other columns.)
    """
    has_placeholder: bool = False
    """Whether the column's texts must say where the learned word goes: by `{}`, or by the row's placeholder_token."""
    max_length: int = 1000
    """The most characters of a text, of each text in a list, and of the value of a tag."""
    max_count: int = 1000
    """The most elements of a list, or tags."""


class _RequiredColumns(TypedDict):
    concept_id: Annotated[
        str,
        Meaning(
            "Name of the concept, unique in the manifest, and of its folder in the output: letters, digits, `.`, `_` "
            "and `-`, at most 128.",
            read_by="labels",
            max_length=128,
        ),
    ]
    images: Annotated[
        list[ImageSource],
        Meaning(
            "Training images; 3 to 5 are best. Paths relative to the manifest's folder, absolute paths, or URIs "
            "(`s3://`, `gs://`, `https://`, ...); or the images' bytes.",
            read_by="learning",
            max_length=8192,
            max_count=10_000,
        ),
    ]


class Row(_RequiredColumns, total=False):
    """A row of a manifest as plain Python. Columns without a value are absent."""

    placeholder_token: Annotated[
        str,
        Meaning(
            "What the learned word is called in prompts. One word, new to the model's tokenizer, and unique in the "
            "manifest; case does not matter.",
            read_by="review",
            default="`<concept_id>`",
            max_length=256,
        ),
    ]
    initializer_token: Annotated[
        str,
        Meaning(
            "Word or phrase that learning starts from, such as `dog`.",
            read_by="learning",
            overrides="training.initializer_token",
        ),
    ]
    learnable_property: Annotated[
        str,
        Meaning(
            "What the images have in common. Selects the default templates, prompts and initializer candidates.",
            read_by="review",
            overrides="training.learnable_property",
        ),
    ]
    num_vectors: Annotated[
        int,
        Meaning(
            "Embedding vectors of the word.",
            read_by="learning",
            overrides="training.num_vectors",
            default="`training.num_vectors`; with a file in `init_from`, as many as it has",
        ),
    ]
    steps: Annotated[
        int,
        Meaning(
            "Optimizer steps.",
            read_by="learning",
            overrides="training.steps",
        ),
    ]
    learning_rate: Annotated[
        float,
        Meaning(
            "Adam's step size; with `optimizer: directional`, the tangent of the angle of a step.",
            read_by="learning",
            overrides="training.learning_rate",
        ),
    ]
    batch_size: Annotated[
        int,
        Meaning(
            "Samples per step.",
            read_by="learning",
            overrides="training.batch_size",
        ),
    ]
    seed: Annotated[
        int,
        Meaning(
            "Determines every random number of the concept's training.",
            read_by="learning",
            overrides="training.seed",
            default="made from `training.seed` and `concept_id`",
        ),
    ]
    templates: Annotated[
        list[str],
        Meaning(
            "Training prompts, with `{}` for the word.",
            read_by="learning",
            overrides="training.templates",
            default="`training.templates`, or else those of the paper",
            has_placeholder=True,
            max_length=MAX_PROMPT_LENGTH,
        ),
    ]
    captions: Annotated[
        list[str],
        Meaning(
            "Training prompts of single images, in the order of `images`, with `{}` for the word. Images beyond the "
            "last caption use the templates.",
            read_by="learning",
            default="none",
            has_placeholder=True,
            max_length=MAX_PROMPT_LENGTH,
            max_count=10_000,
        ),
    ]
    masks: Annotated[
        list[ImageSource | None],
        Meaning(
            "Masks of the images, as `images`: one for each, null for an image without. White is the concept, black "
            "counts `training.unmasked_weight`, grey lies between.",
            read_by="learning",
            default="none; with `data.alpha_masks` the images' alpha channels",
            max_length=8192,
            max_count=10_000,
        ),
    ]
    prompts: Annotated[
        list[str],
        Meaning(
            "Prompts of the sample images, with `{}` for the word.",
            read_by="review",
            overrides="review.prompts",
            has_placeholder=True,
            max_length=MAX_PROMPT_LENGTH,
        ),
    ]
    tags: Annotated[
        dict[str, str],
        Meaning(
            "Labels of your own. They become tags in MLflow.",
            read_by="labels",
            default="none",
            max_length=5000,
            max_count=100,
        ),
    ]
    init_from: Annotated[
        str,
        Meaning(
            "What learning starts from, in place of `initializer_token`: `auto`, `vocabulary_mean`, or the path or URI "
            "of another word's `learned_embeds.safetensors` or of a predictor.",
            read_by="learning",
            overrides="training.init_from",
            default="`training.init_from`, if the row has no `initializer_token`",
            is_option=True,
            max_length=8192,
        ),
    ]
    vectors_added_at: Annotated[
        list[int],
        Meaning(
            "Steps at which the word gets one vector more, such as `[2000, 4000]`; an empty list: none.",
            read_by="learning",
            overrides="training.vectors_added_at",
            is_option=True,
            max_count=64,
        ),
    ]
    regularization_weight: Annotated[
        float,
        Meaning(
            "Weight of the squared distance from the initial vectors in the loss.",
            read_by="learning",
            overrides="training.regularization_weight",
            is_option=True,
        ),
    ]
    per_image_probability: Annotated[
        float,
        Meaning(
            "Share of the training prompts in which a word of the image's own stands beside the learned one.",
            read_by="learning",
            overrides="training.per_image_probability",
            is_option=True,
        ),
    ]
    norm_control: Annotated[
        str,
        Meaning(
            "Keeps the norm of the vectors near the mean norm of the vocabulary: `rescale` sets it after every step, "
            "`regularize` adds a term to the loss.",
            read_by="learning",
            overrides="training.norm_control",
            is_option=True,
        ),
    ]
    norm_weight: Annotated[
        float,
        Meaning(
            "Weight of the term that `norm_control: regularize` adds.",
            read_by="learning",
            overrides="training.norm_weight",
            is_option=True,
        ),
    ]
    optimizer: Annotated[
        str,
        Meaning(
            "How the vectors move: by Adam, or on a sphere of the vocabulary's mean norm (`directional`).",
            read_by="learning",
            overrides="training.optimizer",
            is_option=True,
        ),
    ]
    direction_prior: Annotated[
        float,
        Meaning(
            "Weight in the loss of `optimizer: directional` that keeps the direction near the initial one.",
            read_by="learning",
            overrides="training.direction_prior",
            is_option=True,
        ),
    ]
    context_weight: Annotated[
        float,
        Meaning(
            "Weight in the loss of context regularisation: what text encoders say of a prompt's other tokens stays.",
            read_by="learning",
            overrides="training.context_weight",
            is_option=True,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Column(Meaning):
    """A column of the manifest."""

    name: str
    kind: Kind
    required: bool

    @cached_property
    def field(self) -> FieldInfo | None:
        """The configuration field that the column overrides, if any."""
        if not self.overrides:
            return None
        *sections, name = self.overrides.split(".")
        model: Any = JobConfig
        for section in sections:
            model = model.model_fields[section].annotation
        return model.model_fields[name]

    @cached_property
    def limits(self) -> tuple[tuple[str, float], ...]:
        """Range of a number, as (symbol, limit) pairs such as (">=", 1). Empty: any."""
        symbols = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        constraints = self.field.metadata if self.field else []
        return tuple(
            (symbol, getattr(constraint, attribute))
            for constraint in constraints
            for attribute, symbol in symbols.items()
            if getattr(constraint, attribute, None) is not None
        )

    @property
    def range(self) -> str:
        """The limits in words, such as ">= 1 and <= 64"; empty: any."""
        return " and ".join(f"{symbol} {limit}" for symbol, limit in self.limits)

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The values that a string may have. Empty: any."""
        annotation = self.field.annotation if self.field else None
        return get_args(annotation) if get_origin(annotation) is Literal else ()

    def value(self, row: Mapping[str, object], config: JobConfig) -> Any:
        """The row's value, or else that of the configuration field which the column overrides."""
        given = row.get(self.name)
        return self._configured(config) if given is None else given

    @cached_property
    def _configured(self) -> Callable[[JobConfig], object]:
        return attrgetter(self.overrides)


def _columns() -> dict[str, Column]:
    columns = {}
    for name, hint in get_type_hints(Row, include_extras=True).items():
        kind, (meaning,) = OF_TYPE[hint.__origin__], hint.__metadata__
        required = name in Row.__required_keys__
        columns[name] = Column(**vars(meaning), name=name, kind=kind, required=required)
    return columns


COLUMNS: Mapping[str, Column] = _columns()
"""All columns by name, required ones first."""


def plain_row(row: Mapping[str, object]) -> Row:
    """Converts a row of any reader (pyarrow, Ray Data) to plain Python.

    Keeps known columns that have a value. An empty list counts as no value, except in `vectors_added_at`, where it
    overrides the configuration. Raises ValueError for a value that isn't of the column's kind.
    """
    plain: dict[str, object] = {}
    for name, column in COLUMNS.items():
        value: Any = row.get(name)
        if value is None or (column.kind.empty_is_absent and len(value) == 0):
            continue
        try:
            plain[name] = column.kind.plain(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name} {error}") from None
    return cast(Row, plain)


def markdown_table() -> str:
    """The columns as a Markdown table (name, type and range, default, meaning), for the documentation."""
    lines = ["| column | type | default | meaning |", "|---|---|---|---|"]
    for name, column in COLUMNS.items():
        allowed = ", ".join(f"`{choice}`" for choice in column.choices) or column.range
        kind = f"{column.kind.expected}: {allowed}" if allowed else column.kind.expected
        default = "required" if column.required else column.default or f"`{column.overrides}`"
        lines.append(f"| `{name}` | {kind} | {default} | {column.text} |")
    return "\n".join(lines) + "\n"
