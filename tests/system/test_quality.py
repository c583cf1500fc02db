"""Does it work? Words learned with the bundled models, for a character and a style that they never saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch

from textinv_ray.concepts import prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import Backbone, ConceptTask, Pack, Scorer, load_backbone, sample_images
from textinv_ray.inversion.scoring import image_similarity
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models import sources

pytestmark = pytest.mark.slow

SEEDS = (1, 2, 3)
CHARACTER, STYLE = "chiara", "violet-ink"
COLOURS = "a photo of a person with pale skin, brown hair and a red shirt"
PROMPTS = {CHARACTER: "a photo of a {}", STYLE: "a picture of a person with red hair in the style of {}"}
MARGINS = {CHARACTER: 0.6, STYLE: 0.15}
"""What a style's images have in common is less than what a character's have: so are its gains."""


@dataclasses.dataclass
class Learned:
    """Words by concept and seed, and what judges them."""

    config: JobConfig
    backbone: Backbone
    scorer: Scorer
    concepts: Mapping[str, Concept]
    words: Mapping[tuple[str, int], torch.Tensor]

    def score(self, concept_id: str, prompt: str, vectors: torch.Tensor | None = None) -> float:
        """CLIP image similarity of eight samples of the prompt, `{}` being the word, to the training images."""
        words = {} if vectors is None else {"<it>": vectors}
        images = sample_images(
            self.backbone, words, [prompt.format("<it>")] * 8, list(range(100, 108)), self.config.review
        )
        reference = self.scorer.image_features(self.concepts[concept_id].images[:, 0])
        return image_similarity(self.scorer.image_features(images), reference)


@pytest.fixture(scope="module")
def learned() -> Learned:
    config = JobConfig.load("mini", ["training.steps=200"])  # no stopping rule: this test takes all steps
    backbone = load_backbone(sources.resolve("mini-sd"))
    source = Manifest.open("examples/manifest.parquet")
    concepts = {
        row["concept_id"]: prepare.make(
            row, config, base=source.base, resolution=backbone.resolution, model_identity="mini-sd"
        )
        for row in source.rows()
        if row["concept_id"] in (CHARACTER, STYLE)
    }
    tasks = {
        (concept_id, seed): ConceptTask(dataclasses.replace(concept, seed=seed), backbone, config)
        for concept_id, concept in concepts.items()
        for seed in SEEDS
    }
    pack = Pack(backbone, config, len(tasks))
    for task in tasks.values():
        pack.add(task)
    while pack.tasks:
        pack.step()
    words = {key: task.vectors for key, task in tasks.items()}
    return Learned(config, backbone, Scorer.load(sources.resolve("mini-clip")), concepts, words)


@pytest.mark.parametrize("concept_id", [CHARACTER, STYLE])
def test_learned_word_beats_its_initializer(learned: Learned, concept_id: str) -> None:
    start = PROMPTS[concept_id].format(learned.concepts[concept_id].initializer_token)
    initializer = learned.score(concept_id, start)
    scores = [
        learned.score(concept_id, PROMPTS[concept_id], learned.words[concept_id, seed]) for seed in SEEDS
    ]
    assert min(scores) > initializer + MARGINS[concept_id], (initializer, scores)


def test_learned_word_beats_the_colours_alone(learned: Learned) -> None:
    colours = learned.score(CHARACTER, COLOURS)
    scores = [learned.score(CHARACTER, PROMPTS[CHARACTER], learned.words[CHARACTER, seed]) for seed in SEEDS]
    assert min(scores) > colours, (colours, scores)
