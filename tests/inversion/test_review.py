from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import tiny, tiny_encoders
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import review as review_module
from textinv_ray.inversion import scoring
from textinv_ray.inversion.dino import Dino
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.review import Review, Subject, evaluate_words, review
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.scoring import Scorer

CONFIG = JobConfig.from_dict(
    {"review": {"num_inference_steps": 3, "images_per_prompt": 2}, "scoring": {"num_images": 3}}
)


@pytest.fixture(scope="module")
def scorer(tiny_clip: Path) -> Scorer:
    return Scorer.load(str(tiny_clip), device="cpu")


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


SUBJECTS = [
    Subject(tiny.concept(0), vectors(1, 0)),
    Subject(tiny.concept(0), None),
    Subject(tiny.concept(1, num_vectors=3, prompts=("my {}", "a red {}")), vectors(3, 1)),
    Subject(tiny.concept(2, learnable_property="style", edit_prompts=()), vectors(2, 2)),
]


def assert_close(one: Review, other: Review) -> None:
    assert one.samples.keys() == other.samples.keys()
    for prompt in one.samples:
        assert np.abs(one.samples[prompt].astype(int) - other.samples[prompt]).max() <= 1
    assert one.clip_image_similarity == pytest.approx(other.clip_image_similarity, abs=1e-3)
    assert one.clip_text_similarity == pytest.approx(other.clip_text_similarity, abs=1e-3)


def test_reviewed_together_as_alone(backbone: StableDiffusion, scorer: Scorer) -> None:
    together = review(backbone, scorer, SUBJECTS, CONFIG)
    for subject, result in zip(SUBJECTS, together, strict=True):
        (alone,) = review(backbone, scorer, [subject], CONFIG)
        assert_close(result, alone)


def test_against_the_definitions(backbone: StableDiffusion, scorer: Scorer) -> None:
    """Step by step for one concept, learned word and initializer."""
    concept, word = SUBJECTS[0].concept, SUBJECTS[0].vectors
    assert word is not None
    for name, words, result in zip(
        ("<c0>", "cat"), ({"<c0>": word}, {}), review(backbone, scorer, SUBJECTS[:2], CONFIG), strict=True
    ):

        def render(prompt: str, name: str = name, words: dict[str, torch.Tensor] = words) -> np.ndarray:
            prompts = [prompt.replace("{}", name)] * 3
            return sample_images(backbone, words, prompts, [0, 1, 2], CONFIG.review)

        samples = render("a photo of {}")
        text_scores = []
        for prompt, text in (("{} on the beach", "on the beach"), ("a drawing of {}", "a drawing of")):
            features = scorer.image_features(render(prompt))
            text_scores.append(scoring.text_similarity(features, scorer.text_features([text])[0]))
        expected = Review(
            {"a photo of {}": samples[:2]},
            scoring.image_similarity(
                scorer.image_features(samples), scorer.image_features(concept.images[:, 0])
            ),
            sum(text_scores) / 2,
        )
        assert_close(result, expected)


def test_no_scores_without_what_they_need(backbone: StableDiffusion, scorer: Scorer) -> None:
    (unscored,) = review(backbone, None, SUBJECTS[:1], CONFIG)
    assert (unscored.clip_image_similarity, unscored.clip_text_similarity) == (None, None)
    assert unscored.samples["a photo of {}"].shape == (2, 16, 16, 3)
    (style,) = review(backbone, scorer, SUBJECTS[3:], CONFIG)
    assert style.clip_image_similarity is not None
    assert style.clip_text_similarity is None


def test_each_picture_is_rendered_once(
    backbone: StableDiffusion, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []

    def counted(backbone: StableDiffusion, ids: torch.Tensor, *rest: object, **_: object) -> np.ndarray:
        rendered.append(len(ids))
        return np.zeros((len(ids), 16, 16, 3), dtype=np.uint8)

    monkeypatch.setattr(review_module, "sample_ids", counted)
    twice = Subject(tiny.concept(0, prompts=("a photo of {}",) * 2), vectors(1, 0))
    result, _ = review(backbone, scorer, [twice, SUBJECTS[1]], CONFIG)
    assert len(result.samples["a photo of {}"]) == 2
    # 3 of "a photo of {}", 2 of which are also the review's, and 2 edit prompts, for both words.
    assert rendered == [2 * (3 + 2 * 3)]


def test_pictures_of_initializers_are_kept(
    backbone: StableDiffusion, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of an initializer are reused, by other concepts as well; images of learned words never are."""
    kept: review_module.Pictures = {}
    (first,) = review(backbone, scorer, [SUBJECTS[1]], CONFIG, kept)
    assert len(kept) == 3 + 2 * 3
    rendered = []

    def counted(backbone: StableDiffusion, ids: torch.Tensor, *rest: object, **_: object) -> np.ndarray:
        rendered.append(len(ids))
        return np.zeros((len(ids), 16, 16, 3), dtype=np.uint8)

    monkeypatch.setattr(review_module, "sample_ids", counted)
    other = Subject(tiny.concept(5), None)
    (again, _) = review(backbone, scorer, [other, SUBJECTS[0]], CONFIG, kept)
    assert rendered == [3 + 2 * 3]
    assert len(kept) == 3 + 2 * 3
    for prompt, pictures in first.samples.items():
        np.testing.assert_array_equal(again.samples[prompt], pictures)


def test_another_concepts_name_means_nothing(backbone: StableDiffusion) -> None:
    """A prompt that contains another concept's token, reviewed in one batch with that concept."""
    odd = Subject(tiny.concept(0, prompts=("{} near <c1>",)), vectors(1, 0))
    (alone,) = review(backbone, None, [odd], CONFIG)
    _, beside = review(backbone, None, [SUBJECTS[2], odd], CONFIG)
    assert_close(alone, beside)


def test_crops_all_count_as_reference(backbone: StableDiffusion, scorer: Scorer) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    (result,) = review(backbone, scorer, [Subject(tiny.concept(images=images), None)], CONFIG)
    samples = sample_images(backbone, {}, ["a photo of cat"] * 3, [0, 1, 2], CONFIG.review)
    reference = scorer.image_features(images.reshape(6, 16, 16, 3))
    expected = scoring.image_similarity(scorer.image_features(samples), reference)
    assert result.clip_image_similarity == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("steps", [None, 1, 3])
def test_evaluations_are_the_image_similarity_of_other_pictures(
    backbone: StableDiffusion, scorer: Scorer, steps: int | None
) -> None:
    clip = {"num_images": 2, "num_inference_steps": steps}
    config = CONFIG.model_copy(
        update={"stopping": JobConfig.from_dict({"stopping": {"clip": clip}}).stopping}
    )
    sampling = config.review.model_copy(update={} if steps is None else {"num_inference_steps": steps})
    found = evaluate_words(backbone, scorer, SUBJECTS, config)
    for subject, score in zip(SUBJECTS, found, strict=True):
        assert evaluate_words(backbone, scorer, [subject], config) == [pytest.approx(score, abs=1e-3)]
    word, concept = SUBJECTS[0].vectors, SUBJECTS[0].concept
    assert word is not None
    prompts, seeds = ["a photo of <c0>"] * 2, [1_000_000, 1_000_001]
    pictures = sample_images(backbone, {"<c0>": word}, prompts, seeds, sampling)
    reference = scorer.image_features(concept.images[:, 0])
    expected = scoring.image_similarity(scorer.image_features(pictures), reference)
    assert found[0] == pytest.approx(expected, abs=1e-3)


def test_the_judge_scores_the_same_pictures(
    backbone: StableDiffusion, scorer: Scorer, tmp_path: Path
) -> None:
    """Beside the scorer; against held-out images where there are any, as the scorer's own score."""
    judge = Dino.load(str(tiny_encoders.save_vit(tmp_path)), device="cpu")
    concept = tiny.concept(0)
    held = tiny.concept(5).images[:2]
    subjects = [Subject(tiny.concept(0, heldout=images), vectors(1, 0)) for images in (None, held)]
    plain, against_held = review(backbone, scorer, subjects, CONFIG, judge=judge)
    drawn = {"<c0>": vectors(1, 0)}
    samples = sample_images(backbone, drawn, ["a photo of <c0>"] * 3, [0, 1, 2], CONFIG.review)
    for found, images in ((plain, concept.images), (against_held, held)):
        for encoder, score in ((judge, found.judge_similarity), (scorer, found.clip_image_similarity)):
            pictured, views = encoder.image_features(samples), encoder.image_features(images[:, 0])
            assert score == pytest.approx(float((pictured @ views.T).mean()), abs=1e-3)
        assert found.features is not None
        views = judge.image_features(images[:, 0])
        np.testing.assert_allclose(found.features.views, views.numpy().mean(0), atol=1e-5)
        assert found.features.pictures.shape == (3, 16)
    (alone,) = review(backbone, scorer, subjects[:1], CONFIG)
    assert alone.judge_similarity is None
    assert alone.clip_image_similarity == pytest.approx(plain.clip_image_similarity, abs=1e-3)
    assert alone.features is not None, "without a judge, retrieval goes by the scorer"
    np.testing.assert_allclose(
        alone.features.views, scorer.image_features(concept.images[:, 0]).numpy().mean(0), atol=1e-5
    )
    chosen = evaluate_words(backbone, scorer, subjects, CONFIG)
    assert chosen[0] == pytest.approx(chosen[1], abs=1e-3), "what words are chosen by are training images"
