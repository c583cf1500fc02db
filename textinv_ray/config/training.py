"""The sections `training` and `stopping` of the configuration, and the base class of all sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from textinv_ray.util.errors import UserError
from textinv_ray.util.files import read_regular
from textinv_ray.util.redact import brief

LearnableProperty = Literal["object", "style"]
MAX_PROMPT_LENGTH = 2000
"""Characters of a prompt. Text encoders read some 77 tokens of it."""
Prompt = Annotated[str, Field(pattern=r"\{\}", max_length=MAX_PROMPT_LENGTH)]
MAX_TEMPLATES_BYTES = 2**20
"""Size of a file of templates."""
INIT_FROM = ("auto", "vocabulary_mean")
"""Values of `training.init_from` other than the URI of a learned word."""


class Strict(BaseModel):
    """A section: unknown fields are rejected, values aren't converted, and instances are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class WordsByProperty(Strict):
    """Words or phrases of the vocabulary, for each learnable property."""

    object: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """For objects."""
    style: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """For styles."""

    def of(self, learnable_property: str) -> tuple[str, ...]:
        """The words for "object" or "style"."""
        return self.style if learnable_property == "style" else self.object


class PromptsByProperty(Strict):
    """Prompts with `{}` for the word, for each learnable property."""

    object: tuple[Prompt, ...] = Field(min_length=1)
    """For objects."""
    style: tuple[Prompt, ...] = Field(min_length=1)
    """For styles."""

    def of(self, learnable_property: str) -> tuple[str, ...]:
        """The prompts for "object" or "style"."""
        return self.style if learnable_property == "style" else self.object


_CANDIDATES = WordsByProperty(
    object=tuple(
        """
        person face character cat dog bird animal toy doll statue sculpture cup bowl bottle bag shoe clothing
        chair lamp clock car building plant food logo
        """.split()  # noqa: SIM905
    ),
    style=("painting", "drawing", "sketch", "watercolor", "cartoon", "photo", "pattern", "art"),
)


_CONTEXT_PROMPTS = PromptsByProperty(
    object=(
        "{} in the desert",
        "{} on a wooden table in the kitchen",
        "{} in the snow at night",
        "{} under water among fish",
        "{} on top of a mountain",
        "{} in front of a city street",
        "{} floating in space",
        "{} in a garden full of flowers",
        "{} in the rain with an umbrella",
        "{} wearing a red hat",
        "{} made of glass",
        "{} carved in wood",
        "{} next to a dog",
        "{} and a bowl of fruit",
        "{} as a pencil sketch",
        "{} in the style of a stained glass window",
    ),
    style=(
        "in the style of {}, a city by the sea",
        "in the style of {}, a cat on a chair",
        "in the style of {}, a portrait of a woman",
        "in the style of {}, a forest in autumn",
        "in the style of {}, a bowl of fruit on a table",
        "in the style of {}, two children at play",
        "in the style of {}, a ship in a storm",
        "in the style of {}, a street at night",
    ),
)
"""The word stands early, because in text encoders with causal attention it acts on what follows alone."""


class TimestepsConfig(Strict):
    """How noise levels are drawn, in [0, 1): a distribution by its quantiles, then a shift. `auto`: as the model was
    trained."""

    distribution: Literal["auto", "uniform", "logit_normal", "mode"] = "auto"
    """`uniform`: t = u. `logit_normal`: t = sigmoid(m + s q(u)) with the normal quantile q (Esser et al. 2024, section
    3.1). `mode`: t = 1 - u - c (cos^2(pi u / 2) - 1 + u) (same section). `auto`: `uniform` for Stable Diffusion 1.x,
    2.x and XL, `logit_normal` for models of flow matching."""
    logit_mean: float = Field(0.0, ge=-10, le=10)
    """m of `logit_normal`."""
    logit_std: float = Field(1.0, gt=0, le=10)
    """s of `logit_normal`."""
    mode_scale: float = Field(1.29, ge=-1, le=1.75)
    """c of `mode`."""
    shift: Annotated[float, Field(gt=0, le=100)] | Literal["auto"] = "auto"
    """a in a t / (1 + (a - 1) t) (section 5.3.2), which moves levels towards noise: large images need more. `auto`: 1
    for Stable Diffusion 1.x, 2.x and XL; else as the model's scheduler says, for Flux.1 dev by the resolution."""
    min: float = Field(0.0, ge=0, lt=1)
    """The lowest level: with `max`, what was drawn is mapped linearly to [min, max]. Low levels (little noise) teach
    details, high ones composition and colours."""
    max: float = Field(1.0, gt=0, le=1)
    """The highest level."""

    @model_validator(mode="after")
    def _is_a_range(self) -> TimestepsConfig:
        if self.min >= self.max:
            raise PydanticCustomError(
                "range", "min {min} is not below max {max}", {"min": self.min, "max": self.max}
            )
        return self


Optimizer = Literal["adam", "directional"]
Schedule = Literal["constant", "linear", "cosine"]


class StyleConfig(Strict):
    """What differs for words of styles (`learnable_property: style`) that don't start from a file. A row with an
    `optimizer` or a `learning_rate` of its own has none of it: a rate belongs to its optimizer, so give both here."""

    optimizer: Optimizer | None = None
    """In place of `training.optimizer`; null: the same."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """In place of `training.learning_rate`; null: the same."""
    lr_schedule: Schedule | None = None
    """In place of `training.lr_schedule`; null: the same."""


class WarmStartConfig(Strict):
    """What differs where learning starts from a file: another word, or what a predictor makes of the images. Values of
    a row's own columns come first."""

    steps: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """In place of `training.steps`; null: the same."""
    learning_rate_scale: float = Field(1.0, gt=0, le=10)
    """`training.learning_rate` is multiplied by this: large steps throw a good start away."""
    min_steps: Annotated[int, Field(ge=0)] | None = None
    """In place of `stopping.min_steps`; null: the same. At 0 `stopping.rule: clip` evaluates the start as well, and may
    keep it as it is."""


class TrainingConfig(Strict):
    """How words are learned. A manifest row overrides fields that have a column of the same name."""

    steps: int = Field(300, ge=0, le=1_000_000)
    """Optimizer steps per concept. 0: the word that learning would start from is reviewed and scored as it is."""
    batch_size: int = Field(4, ge=1, le=1024)
    """Samples of each concept per step."""
    learning_rate: float = Field(5e-3, gt=0, le=10)
    """Adam's step size; with `optimizer: directional`, the tangent of the angle of a step. It isn't scaled by the batch
    size or the number of workers."""
    lr_schedule: Schedule = "constant"
    """After the warm-up: constant, or decay to 0 at the last step."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from 0."""
    optimizer: Optimizer = "adam"
    """`adam`: Adam on the vectors. `directional`: directional textual inversion (Kim et al. 2025): the norm of each
    vector is the vocabulary's mean, and each step turns it by atan(`learning_rate`) radians; published for SDXL: 0.04,
    with direction_prior 1e-4. `encoder_rates` and `max_grad_norm` don't apply to it."""
    direction_prior: float = Field(0.0, ge=0, le=1e6)
    """Weight k of -k <mu, v> in the loss of `optimizer: directional`: keeps the direction v near the initial one mu. A
    higher k edits better and resembles less. `adam` has no such term."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the running mean of gradients."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay rate of the running mean of squared gradients."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to Adam's denominator."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Maximum norm of a concept's gradient; null: no clipping."""
    num_vectors: int = Field(1, ge=1, le=64)
    """Embedding vectors per word."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Rows without a `seed` get one that is derived from this and their `concept_id`."""
    max_nonfinite_steps: int = Field(20, ge=0)
    """A concept fails after this many steps in a row with a loss or gradient that isn't finite."""
    learnable_property: LearnableProperty = "object"
    """Default for rows without the column: whether the word stands for an object or a style."""
    initializer_token: str | None = Field(None, min_length=1)
    """Word or phrase that rows without the column start from; null: every row must have one."""
    init_from: str | None = Field(None, min_length=1)
    """Where learning starts, for rows with neither `init_from` nor `initializer_token`; takes precedence over
    `initializer_token` here. `auto`: the candidate with the lowest denoising loss; `vocabulary_mean`; the
    learned_embeds.safetensors of another word; or the file of a predictor, which `textinv predictor fit` makes (a URI,
    or a path relative to the manifest)."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """What differs where learning starts from a file."""
    style: StyleConfig = StyleConfig()
    """What differs for words of styles, but for rows that start from a file, or have an optimizer or a rate of their
    own."""
    initializer_candidates: WordsByProperty = _CANDIDATES
    """Candidates of `init_from: auto`. Each costs about as much time as a step with batch size 4."""
    vectors_added_at: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Progressive extension: steps at which the word gets one vector more (the paper: 2000 and 4000)."""
    regularization_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of ||v - v0||^2 in the loss, which keeps each vector near its initial value v0."""
    per_image_probability: float = Field(0.0, ge=0, le=1)
    """Per-image tokens: the share of training prompts "{} with S_i", in which the word S_i of the sampled image stands
    beside the learned word (the authors' code: 0.25). S_i takes up what is specific to image i; it isn't stored."""
    norm_control: Literal["none", "rescale", "regularize"] = "none"
    """Keeps the norms of vectors near the vocabulary's, because a vector with a large norm overrides the rest of a
    prompt. `rescale`: each vector is rescaled to the vocabulary's mean norm after every step. `regularize`: adds
    norm_weight (||v|| - mean norm)^2 to the loss. Neither changes anything with `optimizer: directional`."""
    norm_weight: float = Field(0.01, ge=0, le=1e6)
    """Weight of the penalty of `norm_control: regularize`."""
    context_weight: float = Field(0.0, ge=0, le=1e6)
    """Context regularisation (Wu et al. 2024, "CoRe"): the weight of a term of the loss that keeps what text encoders
    say of the other tokens of a prompt as it is with the word that learning starts from: the mean of 1 - cosine over
    these tokens (the paper: 1.5e-4). It needs no image and no denoiser. It acts on the vectors for CLIP and T5, where
    the denoiser reads their tokens."""
    context_every: int = Field(1, ge=1)
    """Steps between two with that term, which is multiplied by this number then, so that its mean stays the same."""
    context_prompts: PromptsByProperty = _CONTEXT_PROMPTS
    """Prompts of that term; each step that has it draws one. Tokens behind the word count: in CLIP it acts on no
    others."""
    timesteps: TimestepsConfig = TimestepsConfig()
    """Noise levels."""
    unmasked_weight: float = Field(0.1, ge=0, le=1)
    """Weight u of what an image's mask leaves out. The squared errors of a sample are averaged with the weights
    u + (1 - u) m at each latent, divided by their mean; m is the mask's mean over the latent's pixels. So the size of a
    mask doesn't change the scale of the loss (as OneTrainer's "normalize masked area loss", whose weights are
    max(m, u)). 0: what a mask leaves out has no gradient; 1: masks change nothing."""
    noise_offset: float = Field(0.0, ge=0, le=1)
    """Offset noise: this times a standard normal number is added to all of a channel's noise, one number for each
    sample and channel, so that whole pictures may become darker or lighter (Guttenberg 2023: 0.1)."""
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """Share of the training prompts that are the word alone, in place of a template or a caption. (Peers leave the
    whole caption out, which teaches a word nothing.)"""
    loss_weight: Literal["none", "min_snr", "debiased"] = "none"
    """Weight of a sample by its level's signal-to-noise ratio, for models that predict epsilon or v. `min_snr`:
    min(SNR, gamma) / SNR (Hang et al. 2023); `debiased`: 1 / sqrt(SNR) (Yu et al. 2024). These are weights of the
    epsilon loss; for v they are multiplied by SNR / (SNR + 1), so that both losses are the same function."""
    min_snr_gamma: float = Field(5.0, gt=0, le=1e6)
    """gamma of `min_snr`."""
    encoders: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(None, min_length=1)
    """Text encoders that words are learned for: `clip_l`, `clip_g`, `clip_h`, `t5xxl`, `gemma`, `qwen3_4b`,
    `qwen3_8b`. In the others a word keeps its initial vectors, and these encoders run once per prompt. null: all of the
    model's."""
    encoder_rates: Literal["same", "by_norm"] = "same"
    """Adam's step size for vectors of each text encoder. `by_norm`: `learning_rate` is that of the first; others have
    it times the ratio of their tables' root mean squares: a step that suits one table is too small in a larger one."""
    templates: tuple[Prompt, ...] | None = Field(None, min_length=1)
    """Training prompts for rows without the column; null: the paper's. A list, or the path of a text file with one
    prompt per line."""

    @field_validator("init_from")
    @classmethod
    def _names_a_start(cls, value: str | None) -> str | None:
        if value is not None and value not in INIT_FROM and not is_word_file(value):
            raise ValueError(f"{brief(value)} is none of {', '.join(INIT_FROM)}, nor a .safetensors file")
        return value

    def init_from_of(self, own: str | None, initializer_token: str | None) -> str:
        """The `init_from` of a row with these values; empty: it starts from an initializer token."""
        return own or ("" if initializer_token else self.init_from) or ""

    def steps_of(self, own: int | None, init_from: str) -> int:
        """The steps of a row that starts from `init_from`. own: its column; None: it says nothing."""
        warm = self.warm_start.steps if is_file(init_from) else None
        return next(steps for steps in (own, warm, self.steps) if steps is not None)


class DvarConfig(Strict):
    """`stopping.rule: dvar`: learning ends when the loss on a fixed batch has settled (Voronov et al. 2023)."""

    every: int = Field(10, ge=1)
    """Steps between evaluations, from step 0 on. One costs about half as much as a step of the same batch size."""
    batch_size: int = Field(4, ge=1, le=1024)
    """Samples of the fixed batch (the authors: 4). Images, noise, timesteps and prompts depend on the seed alone."""
    window: int = Field(28, ge=2)
    """Number of last evaluations whose variance is divided by the variance of all evaluations so far. The authors
    evaluate at each step, at first with a window of 282, later of 310."""
    threshold: float = Field(0.39, gt=0, lt=1)
    """Learning ends when that ratio falls below this. The authors' first code has 0.39; 0.15, as it has now, stops
    later."""


class ClipConfig(Strict):
    """`stopping.rule: clip`: learning ends when CLIP image similarity no longer rises. The best word is kept."""

    every: int = Field(100, ge=1)
    """Steps between evaluations, from the first multiple of it at or after `min_steps` on. An evaluation renders
    samples of `scoring.image_prompt` with the sampler of `review`. Their noise differs from that of the final scores,
    so these aren't biased by the choice."""
    num_images: int = Field(8, ge=1, le=1024)
    """Samples per evaluation."""
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Sampling steps of an evaluation; by default those of `review`. Fewer can suffice, because words of one concept
    are only compared with each other."""
    patience: int = Field(3, ge=1)
    """Learning ends after this many evaluations in a row without a new best one."""


class StoppingConfig(Strict):
    """When learning ends before all `steps`, which are then the maximum."""

    rule: Literal["none", "dvar", "clip"] = "none"
    """`none`: all steps are taken. `dvar`: ends by the loss on a fixed batch; the result is the last word. `clip`: ends
    by CLIP image similarity, at a higher cost; the result is the word of the best evaluation. Learning rate schedules
    still refer to `steps`. If you raise `steps` later, a concept that a rule has ended stays ended. If you change the
    rule or its settings, a concept continues from its state where the new rule would have reached the same state, and
    starts again where it wouldn't."""
    min_steps: int = Field(100, ge=0)
    """No rule ends learning before this step, nor before the last of `vectors_added_at`. Set it to the length of the
    warm-up or more."""
    dvar: DvarConfig = DvarConfig()
    """Settings of `rule: dvar`."""
    clip: ClipConfig = ClipConfig()
    """Settings of `rule: clip`."""


def is_file(init_from: str | None) -> bool:
    """Whether an `init_from` is the path or URI of a file: neither empty nor one of `INIT_FROM`."""
    return bool(init_from) and init_from not in INIT_FROM


def is_word_file(uri: str) -> bool:
    """Whether an `init_from` names a safetensors file rather than a method."""
    return uri.partition("?")[0].endswith(".safetensors")


def read_templates(path: str) -> list[str]:
    """Templates from a text file: one per line, with `{}` for the word. Blank lines are skipped. Raises UserError."""
    try:
        data = read_regular(Path(path).expanduser(), MAX_TEMPLATES_BYTES + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = (error.strerror or error) if isinstance(error, OSError) else "it isn't UTF-8 text"
        raise UserError(f"templates file {path!r} can't be read: {why}") from None
    if len(data) > MAX_TEMPLATES_BYTES:
        raise UserError(f"templates file {path!r} is larger than {MAX_TEMPLATES_BYTES // 2**20} MiB")
    for number, line in enumerate(lines, 1):
        if line.strip() and "{}" not in line:
            raise UserError(
                f"templates file {path!r}, line {number}: {brief(line)} must contain {{}} for the word"
            )
    templates = [line.strip() for line in lines if line.strip()]
    if not templates:
        raise UserError(
            f"templates file {path!r} has no templates; write one per line, with {{}} for the word"
        )
    return templates
