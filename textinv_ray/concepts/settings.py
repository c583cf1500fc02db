"""Fills in the defaults of a manifest row: row and configuration become a concept's settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from textinv_ray.concepts import templates
from textinv_ray.concepts.concept import ConceptSettings
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import is_file
from textinv_ray.manifest.columns import COLUMNS, Row
from textinv_ray.util.identity import ById


def settings_of(row: Row, config: JobConfig) -> ConceptSettings:
    """The settings of a row: its own values, and for absent ones those of the configuration.

    Raises ValueError for a row without images, or if neither row nor configuration says what learning starts from.
    """
    training, concept_id = config.training, row["concept_id"]
    placeholder = row.get("placeholder_token", f"<{concept_id}>")
    init_from, initializer_token = start_of(row, config)
    if not row.get("images"):
        raise ValueError(f"{concept_id}: the row has no images")

    def texts(given: Sequence[str]) -> tuple[str, ...]:
        """Texts with {} for the word. Those without {} have the placeholder token in its place."""
        word = templates.WORD
        return tuple(text if word in text else text.replace(placeholder, word) for text in given)

    defaults = _defaults(ById(config))
    values: dict[str, Any] = {**defaults, **{name: value for name, value in row.items() if name in defaults}}
    learnable_property: str = values["learnable_property"]
    given = values["templates"] or templates.templates(learnable_property)
    values |= {
        "init_from": init_from,
        "initializer_token": initializer_token,
        **_of_style(row, config, init_from, learnable_property),
        **_warm(row, config, init_from),
        # 0: as many as the file has, which is not read yet.
        "num_vectors": row.get("num_vectors", 0 if is_file(init_from) else training.num_vectors),
        "seed": row.get("seed", concept_seed(training.seed, concept_id)),
        "templates": texts(given) if "templates" in row else given,
        "prompts": (
            texts(row["prompts"]) if "prompts" in row else config.review.prompts.of(learnable_property)
        ),
        "vectors_added_at": tuple(sorted(values["vectors_added_at"])),
    }
    if values["context_weight"] > 0:
        values["context_every"] = training.context_every
        values["context_prompts"] = training.context_prompts.of(learnable_property)
    return ConceptSettings(
        **values,
        concept_id=concept_id,
        placeholder_token=placeholder,
        captions=texts(row.get("captions", ())),
        edit_prompts=config.scoring.edit_prompts.of(learnable_property),
        tags=row.get("tags", {}),
        initializer_candidates=(
            training.initializer_candidates.of(learnable_property) if init_from == "auto" else ()
        ),
    )


def _of_style(row: Row, config: JobConfig, init_from: str, learnable_property: str) -> dict[str, Any]:
    """The settings of `training.style` for the rows that it is for."""
    if learnable_property != "style" or is_file(init_from) or "optimizer" in row or "learning_rate" in row:
        return {}
    return {name: value for name, value in vars(config.training.style).items() if value is not None}


def _warm(row: Row, config: JobConfig, init_from: str) -> dict[str, Any]:
    """The settings of `training.warm_start`, where learning starts from a file."""
    training, warm = config.training, config.training.warm_start
    if not is_file(init_from):
        return {}
    return {
        "steps": training.steps_of(row.get("steps"), init_from),
        "learning_rate": row.get("learning_rate", training.learning_rate * warm.learning_rate_scale),
        "min_steps": None if config.stopping.rule == "none" else warm.min_steps,
    }


def steps_of(row: Row, config: JobConfig) -> int:
    """`ConceptSettings.steps` of a row."""
    return config.training.steps_of(row.get("steps"), _init_from(row, config))


def min_steps_of(row: Row, config: JobConfig) -> int | None:
    """`ConceptSettings.min_steps` of a row."""
    found: int | None = _warm(row, config, _init_from(row, config)).get("min_steps")
    return found


@lru_cache(maxsize=8)
def _defaults(config: ById[JobConfig]) -> Mapping[str, object]:
    """What the configuration says for each column that overrides one of its fields."""
    return {name: column.value({}, config.value) for name, column in COLUMNS.items() if column.overrides}


def concept_seed(seed: int, concept_id: str) -> int:
    """The seed of a concept whose row has none, in [0, 2**63). It does not depend on the order of the rows."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{concept_id}".encode()).digest()[:8], "big") >> 1


def start_of(row: Row, config: JobConfig) -> tuple[str, str]:
    """What learning starts from, as (init_from, initializer_token); one of them is empty.

    Takes the first that is given: the row's init_from, the row's initializer_token, the configuration's init_from,
    its initializer_token. Raises ValueError if there is none.
    """
    training = config.training
    token = row.get("initializer_token", training.initializer_token) or ""
    start = _init_from(row, config)
    if not token and not start:
        raise ValueError(
            f"{row['concept_id']}: the row has no initializer_token, and the configuration no default"
        )
    return start, "" if start else token


def _init_from(row: Row, config: JobConfig) -> str:
    return config.training.init_from_of(row.get("init_from"), row.get("initializer_token"))
