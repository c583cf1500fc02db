"""One concept, ready to learn: what the preparation hands to the workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Concept:
    """A manifest row with all defaults filled in and its images decoded."""

    concept_id: str
    """Unique in its manifest; safe as a file name."""
    placeholder_token: str
    """What the word is called in prompts, such as `<cat-toy>`."""
    initializer_token: str
    """Word or phrase of the vocabulary that learning starts from."""
    learnable_property: str
    """ "object" or "style"."""
    num_vectors: int
    """Embedding vectors of the word."""
    steps: int
    """Optimizer steps."""
    learning_rate: float
    """Adam's step size."""
    batch_size: int
    """Samples per step."""
    seed: int
    """In [0, 2**63): with the step number it determines every random draw."""
    templates: tuple[str, ...]
    """Training prompts with `{}` for the word; never empty."""
    captions: tuple[str, ...]
    """Empty, or a prompt per image from the first on, with `{}`. Images beyond use the templates."""
    prompts: tuple[str, ...]
    """Prompts to render for review, with `{}`."""
    edit_prompts: tuple[str, ...]
    """Prompts of clip_text_similarity, with `{}`."""
    tags: dict[str, str]
    """The row's own labels, for MLflow."""
    images: np.ndarray
    """uint8 (N, A, S, S, 3): N images, A crops of each, S the resolution."""
    image_uris: tuple[str, ...]
    """Where the N images came from, without credentials."""
    fingerprint: str
    """Digest of everything the result depends on, image bytes included: the same means the same result."""
    row_fingerprint: str
    """The same digest from the row alone, with image URIs (or embedded bytes) in place of fetched bytes:
    what is done can be skipped without fetching its images."""
    state_fingerprint: str
    """Digest of what the course of learning depends on: a checkpoint may be continued when it is equal.
    Reviews and scores don't count, nor does `steps` while the learning rate is constant: a concept whose
    steps were raised continues from its final state."""
    # What follows came later: at these defaults it isn't part of the fingerprints (see prepare.py).
    init_from: str = ""
    """Empty: the initializer_token. Else one of training_config.INIT_FROM, or where `initial_vectors` came from."""
    initializer_candidates: tuple[str, ...] = ()
    """What "auto" chooses the initializer_token from."""
    initial_vectors: tuple[tuple[float, ...], ...] = ()
    """Another word that learning starts from: (any number of vectors, D)."""
    vectors_added_at: tuple[int, ...] = ()
    """Ascending steps at which the word gets one vector more than `num_vectors`."""
    regularization_weight: float = 0.0
    """Of ||v - v0||^2."""
    per_image_probability: float = 0.0
    """How often a word of the image's own stands beside the learned one."""
    norm_control: str = "none"
    """One of training_config.NORM_CONTROLS."""
    norm_weight: float = 0.01
    """Of (||v|| - mean norm)^2, when norm_control is "regularize"."""

    def to_row(self) -> dict[str, Any]:
        """{"concept_id": str, "concept": bytes}: one type for all rows, whatever lists are empty."""
        header = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "images"}
        header["images_shape"] = self.images.shape
        text = json.dumps(header).encode()
        images = np.ascontiguousarray(self.images, dtype=np.uint8).tobytes()
        return {"concept_id": self.concept_id, "concept": len(text).to_bytes(8, "little") + text + images}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Concept:
        """The inverse of `to_row`. The images are a read-only view of the row's bytes."""
        data = row["concept"]
        end = 8 + int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8:end])
        shape = header.pop("images_shape")
        images = np.frombuffer(data, dtype=np.uint8, offset=end).reshape(shape)
        for name, value in header.items():
            if isinstance(value, list):
                header[name] = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        return cls(images=images, **header)
