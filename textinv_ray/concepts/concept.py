"""A concept that is ready to be learned: what preparation hands to the workers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from textinv_ray.config.training import LearnableProperty, Schedule


@dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """What a manifest row and the configuration say about a concept, before any file is read."""

    concept_id: str
    """Unique in its manifest; safe as a file name."""
    placeholder_token: str
    """What the learned word is called in prompts, such as `<cat-toy>`."""
    initializer_token: str
    """Word or phrase of the vocabulary that learning starts from; empty if `init_from` is given."""
    learnable_property: LearnableProperty
    """ "object" or "style"."""
    num_vectors: int
    """Embedding vectors of the word."""
    steps: int
    """Optimizer steps."""
    learning_rate: float
    """Adam's step size, or the tangent of the angle of a directional step."""
    batch_size: int
    """Samples per step."""
    seed: int
    """In [0, 2**63). Together with the step number it determines every random number."""
    templates: tuple[str, ...]
    """Training prompts with `{}` for the word; never empty."""
    captions: tuple[str, ...]
    """Training prompts with `{}` of the first images. Images beyond the last caption use the templates."""
    prompts: tuple[str, ...]
    """Prompts of the sample images, with `{}`."""
    edit_prompts: tuple[str, ...]
    """Prompts of clip_text_similarity, with `{}`."""
    tags: dict[str, str]
    """The row's labels, for MLflow."""
    # Fields with a default came later. Fingerprints leave them out at their default (see fingerprints.py).
    init_from: str = ""
    """What learning starts from in place of the initializer_token: one of `config.training.INIT_FROM`, or the path or
    URI of another word's file. Empty: the initializer_token."""
    initializer_candidates: tuple[str, ...] = ()
    """The words that `init_from="auto"` chooses from; empty otherwise."""
    vectors_added_at: tuple[int, ...] = ()
    """Ascending steps at which the word gets one vector more than before."""
    regularization_weight: float = 0.0
    """Weight of ||v - v0||^2 in the loss."""
    per_image_probability: float = 0.0
    """How often a word of the image's own stands beside the learned one, in [0, 1]."""
    norm_control: str = "none"
    """ "none", "rescale" or "regularize"."""
    norm_weight: float = 0.01
    """Weight of (||v|| - mean norm)^2 in the loss, with norm_control "regularize"."""
    optimizer: str = "adam"
    """ "adam" or "directional"."""
    lr_schedule: Schedule | None = None
    """None: `training.lr_schedule`."""
    min_steps: int | None = None
    """No stopping rule ends learning before this step; None: `stopping.min_steps`."""
    direction_prior: float = 0.0
    """Weight of the distance from the initial direction in the loss, with optimizer "directional"."""
    context_weight: float = 0.0
    """Weight of context regularisation in the loss."""
    context_every: int = 1
    """Steps between two with that term; 1 without it."""
    context_prompts: tuple[str, ...] = ()
    """Prompts of that term, with `{}`; empty without it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Concept(ConceptSettings):
    """A manifest row with all defaults filled in, its images decoded and its fingerprints taken."""

    images: np.ndarray
    """uint8 (N, A, H, W, 3): N images, A crops of each; H and W are the resolution, or a bucket's shape."""
    image_uris: tuple[str, ...]
    """Where the N images came from, without credentials."""
    heldout: np.ndarray | None = None
    """uint8 (M, A, H, W, 3): images that nothing is learned from; None unless `data.holdout` is set."""
    masks: np.ndarray | None = None
    """uint8 (N, A, H, W): 255 where an image's pixels are the concept, 0 where they aren't; None: all are."""
    fingerprint: str
    """Digest of everything the result depends on, including the images' bytes. Equal fingerprints: equal results."""
    row_fingerprint: str
    """The same digest with image URIs (or the bytes of embedded images) in place of fetched bytes. It can be computed
    without fetching an image, so that finished concepts can be skipped."""
    state_fingerprint: str
    """Digest of what the course of learning depends on. A checkpoint with the same one may be continued. Reviews and
    scores are not part of it, nor is `steps` while the learning rate is constant: if `steps` is raised, learning
    continues from the final state."""
    initial_vectors: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """Vectors of the other word that learning starts from, by text encoder: (any number of vectors, D) each."""
    predictor: np.ndarray | None = None
    """uint8 (bytes,): the `Predictor` whose word learning starts from, with the maps for `num_vectors` alone."""
    model_identity: str = ""
    """What tells the model's weights from others: see `prepare.make`."""
    crops: tuple[tuple[tuple[int, int, int, int], ...], ...] = ()
    """(N, A, 4): of each image and crop the original height and width, and the crop's top and left, in pixels of the
    image that was resized so that it just covers H x W. Empty: images that were of size H x W."""
    paddings: tuple[tuple[int, int, int, int], ...] = ()
    """(N, 4): pixels at the left, top, right and bottom of each image that are padding. Empty: none."""

    @property
    def shape(self) -> tuple[int, int]:
        """H and W, the height and width of its training images in pixels."""
        height, width = self.images.shape[2:4]
        return height, width

    @property
    def reference_images(self) -> np.ndarray:
        """What pictures of the word are scored against: the held-out images if there are any, else `images`."""
        return self.images if self.heldout is None else self.heldout

    def time_ids(self, flips: bool) -> np.ndarray:
        """Original height and width, crop top and left, target height and width of every image and crop.

        int64 (N * A * F, 6). flips: whether each crop is followed by its mirror image (F = 2, else 1).
        """
        count, crops, height, width = self.images.shape[:4]
        sizes = np.array(self.crops or (((height, width, 0, 0),) * crops,) * count, dtype=np.int64)
        sizes = sizes.reshape(count * crops, 4)
        target = np.tile(np.array([height, width]), (len(sizes), 1))
        if not flips:
            return np.concatenate([sizes, target], axis=1)
        mirrored = sizes.copy()
        if not self.paddings:  # else nothing was cropped
            # As long as the image covers H x W: see `fitting.crop_places`
            by_height, by_width = sizes[:, 1] * height / sizes[:, 0], np.full(len(sizes), float(width))
            resized_width = np.rint(np.maximum(by_height, by_width)).astype(np.int64)
            mirrored[:, 3] = (resized_width - width - sizes[:, 3]).clip(min=0)
        both = np.stack([sizes, mirrored], axis=1).reshape(-1, 4)
        return np.concatenate([both, target.repeat(2, axis=0)], axis=1)

    def to_bytes(self) -> bytes:
        """The concept as bytes: the length of a JSON header, the header with all other fields, and its arrays."""
        header = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _ARRAYS}
        given = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        arrays = {name: np.ascontiguousarray(pixels, dtype=np.uint8) for name, pixels in given.items()}
        text = json.dumps({**header, _SHAPES: {name: one.shape for name, one in arrays.items()}}).encode()
        return b"".join([len(text).to_bytes(8, "little"), text, *(one.tobytes() for one in arrays.values())])

    @classmethod
    def from_bytes(cls, data: bytes) -> Concept:
        """The inverse of `to_bytes`. The images are a read-only view of `data`."""
        end = 8 + int.from_bytes(data[:8], "little")
        header = {name: _frozen(value) for name, value in json.loads(data[8:end]).items()}
        arrays: dict[str, Any] = {}
        for name, shape in header.pop(_SHAPES).items():
            count = math.prod(shape)
            arrays[name] = np.frombuffer(data, np.uint8, count, end).reshape(shape)
            end += count
        return cls(**arrays, **header)


_ARRAYS, _SHAPES = ("images", "heldout", "masks", "predictor"), "shapes"


def _frozen(value: Any) -> Any:
    """A JSON value with tuples in place of lists."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
