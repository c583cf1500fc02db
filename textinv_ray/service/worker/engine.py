"""The frozen model of a worker, and everything that the worker has it do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.prediction import with_prediction
from textinv_ray.inversion.review import Pictures, Review, Subject, evaluate_words, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import compile_step
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker.pack_sizes import pack_size

NEAREST_WORDS = 5
"""How many words of the vocabulary a result names."""


class Engine:
    """What the service needs of `textinv_ray.inversion`, for one model and one configuration."""

    def __init__(
        self,
        backbone: Backbone,
        scorer: Scorer,
        config: JobConfig,
        compiler: str = "inductor",
        judge: Encoder | None = None,
    ) -> None:
        """`compiler`: backend of torch.compile, used if `pack.compile` is set. `judge`: of `scoring.judge`."""
        self._backbone = backbone
        self._scorer = scorer
        self._judge = judge
        self._config = config
        self._compiler = compiler
        self._initializer_pictures: Pictures = {}

    def task(self, concept: Concept) -> ConceptTask:
        """The concept's optimisation at step 0; the word of a predictor is made here.

        Raises ValueError for a prompt or initializer that can't be used.
        """
        return ConceptTask(with_prediction(concept, self._scorer), self._backbone, self._config)

    def pack_size(self, store: Store, task: ConceptTask) -> int:
        """How many concepts like this one share a pass: see `pack_sizes.pack_size`."""
        return pack_size(store, self._backbone, task, self._config)

    def pack(self, size: int) -> Pack:
        """An empty pack of `size` slots."""
        return Pack(self._backbone, self._config, size)

    def compile(self, task: ConceptTask, size: int) -> None:
        """Compiles the model for packs of `size` concepts like this one, if the configuration says so."""
        if self._config.pack.compile:
            compile_step(self._backbone, task, size, self._config, self._compiler)

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are computed again in the backward pass, which takes less memory."""
        return self._backbone.checkpoints_activations

    def checkpoint_activations(self) -> None:
        """From now on activations are computed again in the backward pass."""
        self._backbone.checkpoint_activations()

    def review(
        self, subjects: Sequence[Subject], *, scored: bool, each_batch: Callable[[], None] = lambda: None
    ) -> list[Review]:
        """Samples, and scores if `scored`. each_batch: called before each batch of pictures.

        Raises ValueError for a prompt that is too long.
        """
        scorer = self._scorer if scored else None
        kept = self._initializer_pictures
        return review(self._backbone, scorer, subjects, self._config, kept, self._judge, each_batch)

    def evaluate(
        self, subjects: Sequence[Subject], each_batch: Callable[[], None] = lambda: None
    ) -> list[float]:
        """What `stopping.rule: clip` goes by: CLIP image similarity in [-1, 1]. Arguments and errors as of `review`."""
        return evaluate_words(self._backbone, self._scorer, subjects, self._config, each_batch)

    def split(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """A word's vectors by text encoder, (V, D of the encoder) each, of its `vectors` (V, D)."""
        return self._backbone.split(vectors)

    def nearest_words(self, vectors: torch.Tensor) -> dict[str, list[str]]:
        """By text encoder, the vocabulary's words nearest to a learned word's `vectors` (V, D)."""
        parts = self._backbone.split(vectors)
        return {
            encoder.name: encoder.nearest_words(parts[encoder.name], NEAREST_WORDS)
            for encoder in self._backbone.encoders
        }
