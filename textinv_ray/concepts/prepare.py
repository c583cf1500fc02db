"""From a manifest row to a Concept: defaults filled in, images fetched, fingerprints taken.

Runs wherever there is a CPU to spare, ahead of the workers. Apart from the images it is pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from textinv_ray.concepts import images, templates
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import INIT_FROM
from textinv_ray.manifest.reader import plain_row
from textinv_ray.util.redact import redact

FINGERPRINT_VERSION = 1
"""To be raised when the same inputs give another result than before."""
OPTIONS = ("regularization_weight", "per_image_probability", "norm_control", "norm_weight")
_BY_ROW = (
    "steps",
    "learning_rate",
    "batch_size",
    "seed",
    "num_vectors",
    "learnable_property",
    "initializer_token",
    "init_from",
    "initializer_candidates",
    "vectors_added_at",
    "templates",
    *OPTIONS,
)
_LATER = {field.name: field.default for field in fields(Concept) if field.default is not MISSING}
"""Fields that are part of a fingerprint only when they differ from this: older results stay valid."""


def make(
    row: Mapping[str, Any], config: JobConfig, *, base: str, resolution: int, model_identity: str
) -> Concept:
    """One concept, ready to learn.

    `row`: of the manifest, as any reader gives it, checked before. `base`: `Manifest.base`. `resolution`: the
    side of training images in pixels, when the configuration leaves it to the model. `model_identity`: what
    tells the model's weights from others', such as a digest or a Hub id with its commit.

    Raises images.ImageError for an image that can't be used, ValueError for a row that `check` would refuse.
    """
    filled = _fill(row, config)
    size = config.data.resolution or resolution
    prepared = images.prepare(
        filled["images"], base=base, config=config.data, resolution=size, seed=filled["seed"]
    )
    parts = _parts(filled, config, size, model_identity)
    row_fingerprint = _digest({**parts, "images": _image_keys(filled["images"])})
    start = filled["init_from"]
    initial_vectors: tuple[tuple[float, ...], ...] = ()
    if is_uri(start):
        initial_vectors = _learned_vectors(start, base, config)
        # Like an image, it counts by what is in it.
        parts["row"]["init_from"] = hashlib.sha256(np.array(initial_vectors).tobytes()).hexdigest()
        filled["init_from"] = redact(start)
        filled["num_vectors"] = filled["num_vectors"] or len(initial_vectors)
    return Concept(
        **{name: value for name, value in filled.items() if name != "images"},
        initial_vectors=initial_vectors,
        images=prepared.pixels,
        image_uris=prepared.uris,
        fingerprint=_digest({**parts, "images": prepared.digests}),
        row_fingerprint=row_fingerprint,
        state_fingerprint=_digest(_trajectory(parts, prepared.digests)),
    )


def row_fingerprint(
    row: Mapping[str, Any], config: JobConfig, *, resolution: int, model_identity: str
) -> str:
    """`Concept.row_fingerprint` without fetching an image: what a finished concept is recognised by."""
    filled = _fill(row, config)
    parts = _parts(filled, config, config.data.resolution or resolution, model_identity)
    return _digest({**parts, "images": _image_keys(filled["images"])})


def concept_seed(seed: int, concept_id: str) -> int:
    """The seed of a concept whose row names none, in [0, 2**63): its own, whatever the order of the rows."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{concept_id}".encode()).digest()[:8], "big") >> 1


def is_uri(init_from: str | None) -> bool:
    """Whether a start is a file, and not one of the named ones."""
    return bool(init_from) and init_from not in INIT_FROM


def start_of(row: Mapping[str, Any], config: JobConfig) -> tuple[str, str]:
    """(init_from, initializer_token) of a plain row; one of them is empty.

    The row's init_from, the row's initializer_token, the configuration's init_from, its initializer_token: the
    first of them that is there. Raises ValueError when none is.
    """
    training = config.training
    token = row.get("initializer_token", training.initializer_token) or ""
    start = row.get("init_from") or ("" if row.get("initializer_token") else training.init_from) or ""
    if not token and not start:
        raise ValueError(
            f"{row['concept_id']}: the row has no initializer_token, and the configuration no default"
        )
    return start, "" if start else token


def files(row: Mapping[str, Any], config: JobConfig) -> list[str | Mapping[str, Any]]:
    """All that a plain row has to be read from: its images, and the word that it starts from."""
    start, _ = start_of(row, config)
    return [*row["images"], *([start] if is_uri(start) else [])]


def _learned_vectors(uri: str, base: str, config: JobConfig) -> tuple[tuple[float, ...], ...]:
    """Another word's vectors from its safetensors file: (V, D). Raises ValueError."""
    try:
        tensors = safetensors.numpy.load(images.fetch(uri, base=base, config=config.data))
    except images.ImageError as error:
        raise ValueError(f"init_from {error.uri}: {error.reason}") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"init_from {redact(uri)}: isn't a safetensors file of a word: {error}") from None
    vectors = np.atleast_2d(next(iter(tensors.values()))) if len(tensors) == 1 else np.zeros(0)
    if vectors.ndim != 2 or 0 in vectors.shape or not np.isfinite(vectors).all():
        raise ValueError(
            f"init_from {redact(uri)}: expected one tensor of finite vectors, found "
            f"{', '.join(f'{name} {list(tensor.shape)}' for name, tensor in sorted(tensors.items())) or 'none'}"
        )
    return tuple(map(tuple, vectors.astype(np.float32).tolist()))


def _fill(row: Mapping[str, Any], config: JobConfig) -> dict[str, Any]:
    """The fields of a Concept that come from row and configuration, and the row's `images`."""
    plain = plain_row(row)
    training = config.training
    concept_id = plain["concept_id"]
    learnable_property = plain.get("learnable_property", training.learnable_property)
    placeholder = plain.get("placeholder_token", f"<{concept_id}>")
    init_from, initializer = start_of(plain, config)
    if not plain.get("images"):
        raise ValueError(f"{concept_id}: the row has no images")

    def texts(column: str, default: Sequence[str]) -> tuple[str, ...]:
        """The row's, with {} where it has the placeholder itself."""
        return tuple(
            text if templates.WORD in text else text.replace(placeholder, templates.WORD)
            for text in plain.get(column, default)
        )

    return {
        "concept_id": concept_id,
        "placeholder_token": placeholder,
        "initializer_token": initializer,
        "learnable_property": learnable_property,
        # 0: as many as the file has, which isn't read yet
        "num_vectors": plain.get("num_vectors", 0 if is_uri(init_from) else training.num_vectors),
        "steps": plain.get("steps", training.steps),
        "learning_rate": plain.get("learning_rate", training.learning_rate),
        "batch_size": plain.get("batch_size", training.batch_size),
        "seed": plain.get("seed", concept_seed(training.seed, concept_id)),
        "templates": texts("templates", training.templates or templates.templates(learnable_property)),
        "captions": texts("captions", ()),
        "prompts": texts("prompts", config.review.prompts.of(learnable_property)),
        "edit_prompts": config.scoring.edit_prompts.of(learnable_property),
        "tags": plain.get("tags", {}),
        "init_from": init_from,
        "initializer_candidates": (
            training.initializer_candidates.of(learnable_property) if init_from == "auto" else ()
        ),
        "vectors_added_at": tuple(sorted(plain.get("vectors_added_at", training.vectors_added_at))),
        **{name: plain.get(name, getattr(training, name)) for name in OPTIONS},
        "images": plain["images"],
    }


@lru_cache(maxsize=8)
def _shared_parts(config: JobConfig) -> str:
    """The configuration without what concepts have of their own, as JSON (so it can't change)."""
    parts = config.result_inputs()
    for name in _BY_ROW:
        del parts["training"][name]
    # The identity says more than the name: the same model may move, another may take its place.
    for name in ("path", "revision", "variant"):
        del parts["model"][name]
    del parts["review"]["prompts"], parts["scoring"]["edit_prompts"], parts["data"]["resolution"]
    return json.dumps(parts)


def _parts(filled: dict[str, Any], config: JobConfig, resolution: int, model_identity: str) -> dict[str, Any]:
    """Everything that determines the result, but the images. A default counts as if the row had given it.

    Not in it: `concept_id` (it names the result), and `tags` (labels, which change nothing that was learned).
    """
    parts: dict[str, Any] = json.loads(_shared_parts(config))
    parts["version"] = FINGERPRINT_VERSION
    parts["model"]["identity"] = model_identity
    parts["data"]["resolution"] = resolution
    labels = ("concept_id", "tags", "images")
    parts["row"] = {
        name: value
        for name, value in filled.items()
        if name not in labels and not (name in _LATER and value == _LATER[name])
    }
    return parts


def _trajectory(parts: dict[str, Any], digests: Sequence[str]) -> dict[str, Any]:
    """What the optimisation's course depends on: no reviews or scores, nor what the word is called.

    Nor when it ends: `stopping` changes no step, and a state knows by itself whether it lies beyond the end.
    """
    later = ("placeholder_token", "learnable_property", "prompts", "edit_prompts")
    row = {name: value for name, value in parts["row"].items() if name not in later}
    if parts["training"]["lr_schedule"] == "constant":
        del row["steps"]
    shared = {name: parts[name] for name in ("version", "model", "data", "training")}
    return {**shared, "row": row, "images": digests}


def _image_keys(row_images: Sequence[str | Mapping[str, Any]]) -> list[str]:
    """What stands for each image in the row: its URI, or the digest of its embedded bytes."""
    keys = []
    for image in row_images:
        if isinstance(image, str):
            keys.append(image)
        elif image.get("bytes") is not None:
            keys.append(hashlib.sha256(image["bytes"]).hexdigest())
        else:
            keys.append(str(image.get("path")))
    return keys


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
