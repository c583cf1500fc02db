from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from textinv_ray.inversion import encoders, scoring
from textinv_ray.inversion.scoring import (
    Scorer,
    image_similarity,
    similarity_between_images,
    text_similarity,
    without_word,
)
from textinv_ray.util.errors import UserError


@pytest.fixture(scope="module")
def scorer(tiny_clip: Path) -> Scorer:
    return Scorer.load(str(tiny_clip), device="cpu")


def pictures(count: int, side: int = 20) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_features_give_the_models_own_cosines(scorer: Scorer, tiny_clip: Path) -> None:
    """Against CLIPModel's joint forward with its CLIPProcessor."""
    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    images, texts = pictures(3), ["a photo of a cat", "a red house"]
    inputs = processor(
        text=texts, images=[Image.fromarray(image) for image in images], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    cosines = scorer.image_features(images) @ scorer.text_features(texts).T
    torch.testing.assert_close(cosines, logits / model.logit_scale.exp(), rtol=1e-4, atol=1e-5)


def test_features_have_length_one_and_do_not_depend_on_the_batch(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(5)
    features = scorer.image_features(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    monkeypatch.setattr(encoders, "BATCH_SIZE", 2)
    torch.testing.assert_close(scorer.image_features(images), features)
    together = scorer.text_features(["a cat", "a photo of a red house on the beach"])
    torch.testing.assert_close(scorer.text_features(["a cat"]), together[:1])


def test_images_need_not_have_the_models_size(scorer: Scorer) -> None:
    assert scorer.image_features(pictures(2, side=37)).shape == (2, 16)


def test_long_texts_lose_their_end(scorer: Scorer) -> None:
    assert scorer.text_features(["cat " * 200]).isfinite().all()


def test_image_similarity_is_the_mean_over_pairs() -> None:
    samples = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    reference = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    assert image_similarity(samples, reference) == pytest.approx((1 + 1 + 0.6 + 0 + 0 + 0.8) / 6)


@pytest.mark.parametrize("crops", [1, 3])
def test_similarity_between_images_is_the_mean_over_pairs_of_different_images(crops: int) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(4, crops, 8, generator=generator), dim=2)
    by_hand = [
        float(one @ other)
        for i, j in itertools.permutations(range(4), 2)
        for one in features[i]
        for other in features[j]
    ]
    assert similarity_between_images(features) == pytest.approx(float(np.mean(by_hand)), abs=1e-6)


def test_crop_features_are_the_features_of_each_crop(scorer: Scorer) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    expected = torch.stack([scorer.image_features(of_image) for of_image in images])
    torch.testing.assert_close(scoring.crop_features(scorer, images), expected, atol=1e-5, rtol=0)


def test_text_similarity_is_the_mean_over_samples() -> None:
    samples = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert text_similarity(samples, torch.tensor([0.0, 1.0])) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a photo of {} on the beach", "a photo of on the beach"),
        ("{} with sunglasses", "with sunglasses"),
        ("a house in the style of {}", "a house in the style of"),
    ],
)
def test_edit_prompts_without_the_word(prompt: str, text: str) -> None:
    assert without_word(prompt) == text


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scoring model .* can't be loaded"):
        Scorer.load(str(tmp_path))
