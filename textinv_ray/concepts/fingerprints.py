"""Fingerprints: digests of everything that a concept's result depends on.

The results of older versions stay valid only while equal inputs keep their digests. So a new setting gets a default at
which it is left out, and FINGERPRINT_VERSION is raised when the same inputs give another result than before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import lru_cache

from textinv_ray.concepts.concept import ConceptSettings
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.manifest.kinds import ImageSource
from textinv_ray.util.identity import ById

FINGERPRINT_VERSION = 1

_DEFAULTS = {field.name: field.default for field in fields(ConceptSettings) if field.default is not MISSING}
"""Settings that came after the first results. They are left out at these values."""
_LABELS = {name for name, column in COLUMNS.items() if column.read_by == "labels"}
_AFTER_LEARNING = {name for name, column in COLUMNS.items() if column.read_by == "review"} | {
    "edit_prompts",
    "min_steps",
}
_IN_SETTINGS = (
    "training.initializer_candidates",
    "training.warm_start",
    "training.style",
    "training.context_every",
    "training.context_prompts",
    "scoring.edit_prompts",
    *(column.overrides for column in COLUMNS.values() if column.overrides),
)
"""Configuration fields that count by what a concept's settings have of them."""
_REPLACED = ("data.resolution", "model.path", "model.config", "model.revision", "model.variant")
"""Configuration fields in whose place the resolution in use and the model's identity count. A model keeps its identity
when it is moved; another model may take its place."""


@dataclass(frozen=True)
class Inputs:
    """Everything that determines a concept's result, apart from its images."""

    config: Mapping[str, str]
    """Canonical JSON of each section of the configuration, without what concepts have settings of their own for."""
    settings: Mapping[str, object]
    """The concept's settings."""
    steps_set_rate: bool
    """Whether the learning rate at a step depends on the number of all steps."""

    def with_setting(self, name: str, value: object) -> Inputs:
        """The same with another value of one setting."""
        return replace(self, settings={**self.settings, name: value})

    def with_masks(self, masks: Sequence[str | None]) -> Inputs:
        """The same with what stands for each mask, None or empty for an image without."""
        return self.with_setting("masks", [mask or None for mask in masks]) if any(masks) else self

    def digest(self, images: Sequence[str]) -> str:
        """Digest of everything the result depends on. `images`: what stands for each image."""
        return _digest(self.config, self.settings, images)

    def state_digest(self, images: Sequence[str]) -> str:
        """Digest of what the course of learning depends on, which a checkpoint may be continued with.

        Leaves out reviews, scores and names. Also leaves out when learning ends: `stopping` changes no step, and a
        checkpoint knows its own step. `steps` counts only if the learning rate depends on it.
        """
        settings = {name: value for name, value in self.settings.items() if name not in _AFTER_LEARNING}
        if not self.steps_set_rate:
            del settings["steps"]
        return _digest({name: self.config[name] for name in ("model", "data", "training")}, settings, images)


def inputs_of(
    settings: ConceptSettings, config: JobConfig, *, resolution: int, model_identity: str
) -> Inputs:
    """The inputs of a concept's result. A default counts as if the row had given it.

    `resolution`: side of the training images in pixels. `model_identity`: what tells the model's weights from others.
    """
    # The schedule counts with the section, which all had before a concept could have one of its own.
    own = {
        name: value
        for name, value in vars(settings).items()
        if name not in _LABELS
        and name != "lr_schedule"
        and not (name in _DEFAULTS and value == _DEFAULTS[name])
    }
    if settings.vectors_added_at:
        own["joining_from"] = "mean"  # before, all vectors were spread over the initializer's embeddings
    schedule = settings.lr_schedule or config.training.lr_schedule
    sections = _shared_sections(ById(config), resolution, model_identity, schedule)
    return Inputs(sections, own, steps_set_rate=schedule != "constant")


def image_keys(images: Sequence[ImageSource]) -> list[str]:
    """What stands for each image of a row without fetching it: its URI, or the digest of its embedded bytes."""
    return [_key(image) for image in images]


def mask_keys(masks: Sequence[ImageSource | None]) -> list[str | None]:
    """The same of masks; None for an image without."""
    return [None if mask is None else _key(mask) for mask in masks]


def _key(image: ImageSource) -> str:
    if isinstance(image, str):
        return image
    data = image.get("bytes")
    return str(image.get("path")) if data is None else hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=8)
def _shared_sections(
    config: ById[JobConfig], resolution: int, model_identity: str, schedule: str
) -> Mapping[str, str]:
    """`Inputs.config`, made once for all rows of a manifest that have this schedule of the learning rate."""
    sections = config.value.result_inputs()
    for name in (*_IN_SETTINGS, *_REPLACED):
        section, field = name.split(".")
        sections[section].pop(field, None)
    sections["model"]["identity"] = model_identity
    sections["training"]["lr_schedule"] = schedule
    sections["data"]["resolution"] = resolution
    return {name: _canonical(section) for name, section in sections.items()}


def _digest(config: Mapping[str, str], settings: Mapping[str, object], images: Sequence[str]) -> str:
    """SHA-256 of a canonical JSON object of all parts."""
    parts = {
        **config,
        "version": str(FINGERPRINT_VERSION),
        "row": _canonical(settings),
        "images": _canonical(images),
    }
    text = ",".join(f'"{name}":{parts[name]}' for name in sorted(parts))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


_CANONICAL_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _canonical(value: object) -> str:
    return _CANONICAL_JSON.encode(value)
