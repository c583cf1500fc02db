"""Evaluation protocols as data: protocols/*.yaml, each with its source. Prompts, subjects, encoders, published rows."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textinv_ray.config.training import LearnableProperty
from textinv_ray.util import yaml_files
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import nearest

Text = Annotated[str, Field(min_length=1)]
Prompt = Annotated[str, Field(pattern=r"\{\}")]
EditPrompts = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Group of prompts (a learnable property, or what a protocol's subjects name) -> category -> prompts with `{}`."""
Prompts = dict[str, dict[str, tuple[Prompt, ...]]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Encoder(_Part):
    """A model that pictures are scored by."""

    model: Text
    """Folder, URI or Hub id."""
    resize: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Pixels that the shorter side is resized to (bicubic), where it isn't done as the model's own processor does."""
    crop: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of the square that is then cut from the middle."""


class Subject(_Part):
    """A concept of a data set."""

    class_word: Text
    """What stands in place of the word in texts, and what words are learned from."""
    prompts: Text
    """Group of `prompts`."""
    images: Annotated[int, Field(ge=1)] | None = None
    """Number of its images in the data set; null: not fixed."""
    group: str = ""
    """Kind of subject that has a mean of its own; empty: none."""
    learnable_property: LearnableProperty = "object"
    """`object` or `style`."""


class Published(_Part):
    """A row of a published table."""

    method: Text
    """What was evaluated."""
    scores: dict[str, float]
    """By the names that this package's scores have."""
    source: Text
    """Where it was published."""


class DataSet(_Part):
    """The images of a protocol, which aren't part of this package."""

    where: Text
    """Where to get it, in a line."""
    layout: Literal["folders", "captions"]
    """`folders`: a folder of images per subject. `captions`: images/**/NN.jpg, and captions/**/NN.txt with the subject
    in the first line and a prompt in each other one."""
    folders: tuple[Text, ...] = ()
    """Where the subjects' folders may lie below the path that is given; the path itself always."""
    subjects: Annotated[int, Field(ge=1)]
    """Number of subjects."""
    prompts_per_subject: Annotated[int, Field(ge=1)]
    """Number of prompts of each."""


class ProtocolData(_Part):
    """An evaluation protocol as its file says it."""

    title: Text
    """Name in tables."""
    source: Text
    """Paper and repository that it is read from."""
    notes: str = ""
    """What the source doesn't say, or what is done otherwise here."""
    images_per_prompt: Annotated[int, Field(ge=1, le=1024)]
    """Samples of each prompt, with seeds 0, 1, ..."""
    sampler: Literal["dpmsolver++", "ddim", "euler"] | None = None
    """null: that of the job."""
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """null: that of the job."""
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    """null: that of the job."""
    images: Literal["image_prompt", "all_prompts"] = "image_prompt"
    """Whose samples are compared with real images: of the plain prompt ("a photo of {}"), or of all prompts."""
    text_scale: Annotated[float, Field(gt=0)] | None = None
    """Where the source reports w x max(cosine, 0): w; then there are `<encoder>_text_score`s."""
    references: tuple[Literal["training_images", "without_word", "description"], ...] = (
        "without_word",
        "training_images",
        "description",
    )
    """What is scored beside the words."""
    prompts: Prompts = {}
    """Editing prompts by group and category."""
    bundled_prompts: Prompts | None = None
    """Those for the bundled models, which know few words."""
    scorers: dict[str, Encoder] = {}
    """Encoders by name; empty: those of the job's configuration."""
    subjects: dict[str, Subject] = {}
    """By concept_id; empty: any concept, with the prompts of its learnable property."""
    data: DataSet | None = None
    """The data set."""
    published: tuple[Published, ...] = ()
    """Published rows, for the table."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The kinds of subjects that have means of their own."""
        return tuple(dict.fromkeys(one.group for one in self.subjects.values() if one.group))


def names() -> list[str]:
    """Names of the protocols."""
    return sorted(path.stem for path in Path(str(_FOLDER)).glob("*.yaml"))


def load(name_or_path: str) -> ProtocolData:
    """The protocol of a name, or of a YAML file (with a slash, or ending in .yaml). Raises UserError."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path, source = Path(name_or_path).expanduser(), name_or_path
    elif name_or_path in names():
        path, source = Path(str(_FOLDER)) / f"{name_or_path}.yaml", f"protocol {name_or_path!r}"
    else:
        raise UserError(
            f"no protocol {name_or_path!r}{nearest(name_or_path, names())} (known: {', '.join(names())}; or give "
            "the path of a .yaml file)"
        )
    found = yaml_files.read(path, source)
    if not isinstance(found, dict):
        raise UserError(f"{source}: expected fields such as 'title:'")
    if isinstance(like := found.pop("like", None), str):
        found = {**load(like).model_dump(mode="json"), **found}
    try:
        return ProtocolData.model_validate(found, strict=False)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)
        ]
        raise UserError(f"{source}:\n" + "\n".join(lines[:20])) from None


_FOLDER = resources.files("textinv_ray.config") / "protocols"
