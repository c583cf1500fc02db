"""The scores of the evaluation, compared with the formulas written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import sample_images, scoring
from textinv_ray.inversion.dino import Dino
from textinv_ray.inversion.evaluation import EditPrompts, Evaluator, LearnedConcept, Protocol
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.util.errors import UserError

FAST = ReviewConfig(num_inference_steps=2)
EDITS: EditPrompts = {
    "object": {
        "background": ("a photo of {} on the beach",),
        "style": ("a painting of {}", "a drawing of {}"),
    },
    "style": {"composition": ("a house in the style of {}",)},
}
PROTOCOL = Protocol(3, FAST, EDITS)


@pytest.fixture(scope="module")
def scorer(tiny_clip: Path) -> Scorer:
    return Scorer.load(str(tiny_clip), device="cpu")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Dino:
    """A random one of the real classes."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(2)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return Dino.load(str(folder), device="cpu")


def subject(description: str | None = None, images: int = 3, kind: str = "object") -> LearnedConcept:
    generator = np.random.default_rng(5)
    pictures = generator.integers(0, 256, (images, 16, 16, 3), dtype=np.uint8)
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(4)).numpy()
    return LearnedConcept("<x>", {"clip_l": vectors}, kind, pictures, description)


def features(scorer: Scorer, images: np.ndarray) -> np.ndarray:
    return scorer.image_features(images).numpy().astype(np.float64)


def drawn(backbone: StableDiffusion, prompt: str, word: str, given: LearnedConcept) -> np.ndarray:
    prompts = [prompt.replace("{}", word)] * 3
    learned = {"<x>": torch.tensor(given.word["clip_l"])} if word == "<x>" else {}
    return sample_images(backbone, learned, prompts, [0, 1, 2], FAST)


def expected(scorer: Scorer, given: LearnedConcept, pictures: dict[str, np.ndarray]) -> dict[str, float]:
    """Cosines per sample, then means; texts are the prompts without the word."""
    training = features(scorer, given.training_images)
    images = [float(s @ t) for s in features(scorer, pictures["a photo of {}"]) for t in training]
    texts = {}
    for prompt, text in (
        ("a photo of {} on the beach", "a photo of on the beach"),
        ("a painting of {}", "a painting of"),
        ("a drawing of {}", "a drawing of"),
    ):
        direction = scorer.text_features([text])[0].numpy()
        texts[prompt] = float(np.mean([s @ direction for s in features(scorer, pictures[prompt])]))
    values = list(texts.values())
    return {
        "clip_image_similarity": float(np.mean(images)),
        "clip_text_similarity_background": values[0],
        "clip_text_similarity_style": (values[1] + values[2]) / 2,
        "clip_text_similarity": sum(values) / 3,
    }


PROMPTS = ["a photo of {}", "a photo of {} on the beach", "a painting of {}", "a drawing of {}"]


def test_scores_and_references_are_what_their_definitions_say(
    backbone: StableDiffusion, scorer: Scorer
) -> None:
    given = subject("red cat")
    scores = Evaluator(backbone, scorer, PROTOCOL).evaluate(given)
    by_reference = {
        "": {prompt: drawn(backbone, prompt, "<x>", given) for prompt in PROMPTS},
        "_without_word": {
            prompt: drawn(backbone, " ".join(prompt.replace("{}", "").split()), "", given)
            for prompt in PROMPTS
        },
        "_description": {prompt: drawn(backbone, prompt, "red cat", given) for prompt in PROMPTS},
        "_training_images": dict.fromkeys(PROMPTS, given.training_images),
    }
    wanted = {
        f"{score}{reference}": value
        for reference, pictures in by_reference.items()
        for score, value in expected(scorer, given, pictures).items()
    }
    # An image isn't compared with itself.
    training = features(scorer, given.training_images)
    pairs = [float(training[i] @ training[j]) for i in range(3) for j in range(3) if i != j]
    wanted["clip_image_similarity_training_images"] = float(np.mean(pairs))
    assert scores.keys() == wanted.keys()
    for name, value in wanted.items():
        assert scores[name] == pytest.approx(value, abs=2e-4), name


def test_what_cant_be_had_is_absent(backbone: StableDiffusion, scorer: Scorer) -> None:
    scores = Evaluator(backbone, scorer, PROTOCOL).evaluate(subject(images=1))
    assert "clip_image_similarity_training_images" not in scores
    assert not [name for name in scores if "description" in name or "dino" in name]
    assert "clip_text_similarity_training_images" in scores
    style = Evaluator(backbone, scorer, PROTOCOL).evaluate(subject(kind="style"))
    assert "clip_text_similarity_composition" in style
    assert "clip_text_similarity_background" not in style


def test_one_after_another_is_the_same_as_alone(backbone: StableDiffusion, scorer: Scorer) -> None:
    evaluator = Evaluator(backbone, scorer, PROTOCOL)
    first, second = evaluator.evaluate(subject("cat")), evaluator.evaluate(subject(images=2))
    assert evaluator.evaluate(subject("cat")) == first
    assert Evaluator(backbone, scorer, PROTOCOL).evaluate(subject(images=2)) == second


def test_dino_beside_clip(backbone: StableDiffusion, scorer: Scorer, dino: Dino) -> None:
    given = subject()
    scores = Evaluator(backbone, scorer, PROTOCOL, dino).evaluate(given)
    samples = dino.image_features(drawn(backbone, "a photo of {}", "<x>", given))
    training = dino.image_features(given.training_images)
    assert torch.allclose(samples.norm(dim=1), torch.ones(3), atol=1e-5)
    assert scores["dino_similarity"] == pytest.approx(float((samples @ training.T).mean()), abs=2e-4)
    assert scores["dino_similarity_training_images"] == pytest.approx(
        scoring.similarity_between_images(training[:, None]), abs=1e-6
    )
    assert "dino_similarity_without_word" in scores
    plain = Evaluator(backbone, scorer, PROTOCOL).evaluate(given)
    assert {name: value for name, value in scores.items() if "dino" not in name} == plain


def test_dino_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the DINO model .* can't be loaded"):
        Dino.load(str(tmp_path))


def test_presets() -> None:
    paper = Protocol.of("paper", ReviewConfig(guidance_scale=3.0), EDITS)
    assert (paper.num_images, paper.review.sampler, paper.review.num_inference_steps) == (64, "ddim", 50)
    assert paper.review.guidance_scale == 3.0
    assert Protocol.of("quick", FAST, EDITS) == Protocol(4, FAST, EDITS)
    assert paper.pictures("object") == 256
    with pytest.raises(ValueError, match="known: quick, paper"):
        Protocol.of("slow", FAST, EDITS)
