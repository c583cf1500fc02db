"""The scores of the evaluation, compared with the formulas written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import tiny_encoders
from textinv_ray.config import protocol
from textinv_ray.config.job import ReviewConfig
from textinv_ray.config.protocol import EditPrompts
from textinv_ray.inversion import sample_images, scoring
from textinv_ray.inversion.dino import Dino
from textinv_ray.inversion.evaluation import IMAGE_PROMPTS, Evaluator, LearnedConcept, Protocol
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
PROTOCOL = Protocol(3, FAST, EDITS, IMAGE_PROMPTS)


@pytest.fixture(scope="module")
def scorer(tiny_clip: Path) -> Scorer:
    return Scorer.load(str(tiny_clip), device="cpu")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Dino:
    """A random one of the real classes."""
    return Dino.load(str(tiny_encoders.save_dinov2(tmp_path_factory.mktemp("dino"))), device="cpu")


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
    training = features(scorer, given.images)
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
    scores = Evaluator(backbone, {"clip": scorer}, PROTOCOL).evaluate(given).scores
    by_reference = {
        "": {prompt: drawn(backbone, prompt, "<x>", given) for prompt in PROMPTS},
        "_without_word": {
            prompt: drawn(backbone, " ".join(prompt.replace("{}", "").split()), "", given)
            for prompt in PROMPTS
        },
        "_description": {prompt: drawn(backbone, prompt, "red cat", given) for prompt in PROMPTS},
        "_training_images": dict.fromkeys(PROMPTS, given.images),
    }
    wanted = {
        f"{score}{reference}": value
        for reference, pictures in by_reference.items()
        for score, value in expected(scorer, given, pictures).items()
    }
    # An image isn't compared with itself.
    training = features(scorer, given.images)
    pairs = [float(training[i] @ training[j]) for i in range(3) for j in range(3) if i != j]
    wanted["clip_image_similarity_training_images"] = float(np.mean(pairs))
    assert scores.keys() == wanted.keys()
    for name, value in wanted.items():
        assert scores[name] == pytest.approx(value, abs=2e-4), name


def test_what_cant_be_had_is_absent(backbone: StableDiffusion, scorer: Scorer) -> None:
    scores = Evaluator(backbone, {"clip": scorer}, PROTOCOL).evaluate(subject(images=1)).scores
    assert "clip_image_similarity_training_images" not in scores
    assert not [name for name in scores if "description" in name or "dino" in name]
    assert "clip_text_similarity_training_images" in scores
    style = Evaluator(backbone, {"clip": scorer}, PROTOCOL).evaluate(subject(kind="style")).scores
    assert "clip_text_similarity_composition" in style
    assert "clip_text_similarity_background" not in style


def test_one_after_another_is_the_same_as_alone(backbone: StableDiffusion, scorer: Scorer) -> None:
    evaluator = Evaluator(backbone, {"clip": scorer}, PROTOCOL)
    first, second = (evaluator.evaluate(one).scores for one in (subject("cat"), subject(images=2)))
    assert evaluator.evaluate(subject("cat")).scores == first
    assert Evaluator(backbone, {"clip": scorer}, PROTOCOL).evaluate(subject(images=2)).scores == second


def test_dino_beside_clip(backbone: StableDiffusion, scorer: Scorer, dino: Dino) -> None:
    given = subject()
    scores = Evaluator(backbone, {"clip": scorer, "dino": dino}, PROTOCOL).evaluate(given).scores
    samples = dino.image_features(drawn(backbone, "a photo of {}", "<x>", given))
    training = dino.image_features(given.images)
    assert torch.allclose(samples.norm(dim=1), torch.ones(3), atol=1e-5)
    assert scores["dino_similarity"] == pytest.approx(float((samples @ training.T).mean()), abs=2e-4)
    assert scores["dino_similarity_training_images"] == pytest.approx(
        scoring.similarity_between_images(training[:, None]), abs=1e-6
    )
    assert "dino_similarity_without_word" in scores
    plain = Evaluator(backbone, {"clip": scorer}, PROTOCOL).evaluate(given).scores
    assert {name: value for name, value in scores.items() if "dino" not in name} == plain


def test_dino_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the DINO model .* can't be loaded"):
        Dino.load(str(tmp_path))


PUBLISHED = Protocol(
    3,
    FAST,
    {"live": {"all": ("a {} on the beach", "a red {}")}},
    image_prompts=None,
    text_scale=2.5,
    references=("training_images",),
)


def test_a_published_protocol(backbone: StableDiffusion, scorer: Scorer, dino: Dino) -> None:
    """Samples of all prompts beside images; texts with the class word; CLIPScore; retrieval by the same pictures."""
    plain = subject()
    given = LearnedConcept("<x>", plain.word, "object", plain.images, prompts="live", class_word="cat")
    found = Evaluator(backbone, {"clip": scorer, "dino": dino}, PUBLISHED).evaluate(given)
    pictures = {
        "a cat on the beach": drawn(backbone, "a {} on the beach", "<x>", plain),
        "a red cat": drawn(backbone, "a red {}", "<x>", plain),
    }
    every = np.concatenate(list(pictures.values()))
    texts = {text: scorer.text_features([text])[0].numpy() for text in pictures}
    cosines = np.array(
        [scorer.image_features(drawn).numpy() @ texts[text] for text, drawn in pictures.items()]
    )
    expected = {
        "clip_text_similarity": cosines.mean(),
        "clip_text_score": 2.5 * cosines.clip(min=0).mean(),
        "clip_image_similarity": (features(scorer, every) @ features(scorer, plain.images).T).mean(),
        "dino_similarity": (dino.image_features(every) @ dino.image_features(plain.images).T).mean(),
    }
    for name, value in expected.items():
        assert found.scores[name] == pytest.approx(float(value), abs=2e-4), name
    references = {name for name in found.scores if name not in expected}
    assert references == {f"{name}_training_images" for name in expected}
    for name, encoder in (("clip", scorer), ("dino", dino)):
        assert found.features[name].pictures.shape == (6, 16)
        views = encoder.image_features(plain.images).numpy().mean(0)
        np.testing.assert_allclose(found.features[name].views, views, atol=1e-5)


def test_protocols_take_what_they_leave_open_from_the_job() -> None:
    review = ReviewConfig(guidance_scale=3.0, num_inference_steps=7)
    paper = Protocol.of(protocol.load("paper"), review, bundled=False)
    assert (paper.num_images, paper.review.sampler, paper.review.num_inference_steps) == (64, "ddim", 50)
    assert paper.review.guidance_scale == 3.0
    assert paper.edit_prompts["object"]["composition"] == ("Elmo holding a {}",)
    assert paper.image_prompts == IMAGE_PROMPTS
    quick = Protocol.of(protocol.load("quick"), review, bundled=True)
    assert (quick.num_images, quick.review) == (4, review)
    assert quick.edit_prompts["object"]["composition"] == ("a photo of {} with sunglasses",)
    dreambench = Protocol.of(protocol.load("dreambench"), review, bundled=True)
    assert dreambench.image_prompts is None
    given = subject()
    live = LearnedConcept("<x>", given.word, "object", given.images, prompts="live")
    assert dreambench.prompts(live)[-1] == "a cube shaped {}"
    assert len(dreambench.prompts(live)) == 25
