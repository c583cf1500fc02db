"""From a manifest row to a Concept: defaults filled in, images fetched, fingerprints taken.

Runs wherever there is a CPU to spare, ahead of the workers. Apart from the images it is pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from textinv_ray import images, prompts
from textinv_ray.concept import Concept
from textinv_ray.config import JobConfig
from textinv_ray.manifest import plain_row

FINGERPRINT_VERSION = 1
"""To be raised when the same inputs give another result than before."""
_BY_ROW = (
    "steps",
    "learning_rate",
    "batch_size",
    "seed",
    "num_vectors",
    "learnable_property",
    "initializer_token",
)


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
    return Concept(
        **{name: value for name, value in filled.items() if name != "images"},
        images=prepared.pixels,
        image_uris=prepared.uris,
        fingerprint=_digest({**parts, "images": prepared.digests}),
        row_fingerprint=_digest({**parts, "images": _image_keys(filled["images"])}),
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


def _fill(row: Mapping[str, Any], config: JobConfig) -> dict[str, Any]:
    """The fields of a Concept that come from row and configuration, and the row's `images`."""
    plain = plain_row(row)
    training = config.training
    concept_id = plain["concept_id"]
    learnable_property = plain.get("learnable_property", training.learnable_property)
    placeholder = plain.get("placeholder_token", f"<{concept_id}>")
    initializer = plain.get("initializer_token", training.initializer_token)
    if not initializer:
        raise ValueError(f"{concept_id}: the row has no initializer_token, and the configuration no default")
    if not plain.get("images"):
        raise ValueError(f"{concept_id}: the row has no images")

    def texts(column: str, default: Sequence[str]) -> tuple[str, ...]:
        """The row's, with {} where it has the placeholder itself."""
        return tuple(
            text if prompts.WORD in text else text.replace(placeholder, prompts.WORD)
            for text in plain.get(column, default)
        )

    return {
        "concept_id": concept_id,
        "placeholder_token": placeholder,
        "initializer_token": initializer,
        "learnable_property": learnable_property,
        "num_vectors": plain.get("num_vectors", training.num_vectors),
        "steps": plain.get("steps", training.steps),
        "learning_rate": plain.get("learning_rate", training.learning_rate),
        "batch_size": plain.get("batch_size", training.batch_size),
        "seed": plain.get("seed", concept_seed(training.seed, concept_id)),
        "templates": texts("templates", prompts.templates(learnable_property)),
        "captions": texts("captions", ()),
        "prompts": texts("prompts", config.review.prompts.of(learnable_property)),
        "edit_prompts": config.scoring.edit_prompts.of(learnable_property),
        "tags": plain.get("tags", {}),
        "images": plain["images"],
    }


@lru_cache(maxsize=8)
def _shared_parts(config: JobConfig) -> str:
    """The configuration without what concepts have of their own, as JSON (so it can't change)."""
    parts = config.digest_part()
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
    parts["row"] = {name: filled[name] for name in filled if name not in ("concept_id", "tags", "images")}
    return parts


def _trajectory(parts: dict[str, Any], digests: Sequence[str]) -> dict[str, Any]:
    """What the optimisation's course depends on: no reviews or scores, nor what the word is called."""
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
