"""Each kind of encoder against transformers' own processor and model, and preprocessing written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessorPil

from tests.support import tiny, tiny_encoders
from textinv_ray.inversion import dino, encoders, scoring
from textinv_ray.inversion.encoder_loading import CLASSES, load_encoder, model_type
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.util.errors import UserError

KINDS: dict[str, Callable[[Path], Path]] = {
    "clip": tiny.save_clip,
    "vit": tiny_encoders.save_vit,
    "dinov2": tiny_encoders.save_dinov2,
    "dinov3_vit": tiny_encoders.save_dinov3,
    "siglip": tiny_encoders.save_siglip,
    "siglip2": tiny_encoders.save_siglip2,
}
TEXTS = ["a photo of a Cat", "THE red house"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[kind](tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(str(folder), device="cpu")


def pictures(count: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_features_are_those_of_transformers_own_processor(kind: str, folder: Path, encoder: Encoder) -> None:
    """Picture by picture, through PIL, and the token that each kind of model is scored by."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModel.from_pretrained(folder).eval()
    images = pictures(3)
    found = encoder.image_features(images)
    assert found.dtype == torch.float32
    for image, features in zip(images, found, strict=True):
        inputs = processor(images=Image.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            if encoder.reads_text:
                own = model.get_image_features(**inputs).pooler_output[0]
            else:
                own = model(**inputs).last_hidden_state[0, 0]
        torch.testing.assert_close(features, F.normalize(own, dim=0), rtol=1e-4, atol=1e-5)


def test_texts_as_transformers_reads_them(folder: Path, encoder: Encoder) -> None:
    if not encoder.reads_text:
        with pytest.raises(ValueError, match="reads no text"):
            encoder.text_features(TEXTS)
        return
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    is_clip = isinstance(encoder, scoring.Scorer)
    for text, features in zip(TEXTS, encoder.text_features(TEXTS), strict=True):
        text = text if is_clip else text.lower()
        padding = {} if is_clip else {"padding": "max_length", "padding_side": "right"}
        ids = tokenizer([text], truncation=True, return_tensors="pt", **padding).input_ids
        with torch.no_grad():
            own = model.get_text_features(input_ids=ids).pooler_output[0]
        torch.testing.assert_close(features, F.normalize(own, dim=0), rtol=1e-4, atol=1e-5)
    assert encoder.text_features(["cat " * 200]).isfinite().all(), "long texts lose their end"


def test_vectors_have_length_one_whatever_the_batch(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(5)
    features = encoder.image_features(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    monkeypatch.setattr(encoders, "BATCH_SIZE", 2)
    torch.testing.assert_close(encoder.image_features(images), features, rtol=1e-4, atol=1e-5)


def by_hand(
    image: np.ndarray, size: tuple[int, int], mean: float | list[float], std: float | list[float]
) -> torch.Tensor:
    """Bicubic or bilinear resize of the bytes, then (x / 255 - mean) / std."""
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.float64)
    return torch.from_numpy((small / 255 - np.array(mean)) / np.array(std)).permute(2, 0, 1).float()


def test_the_preprocessing_written_out(tmp_path: Path) -> None:
    """What papers call CLIP's and DINO's: shorter side bicubic to a size, the middle cut out, mean and deviation."""
    encoder = load_encoder(str(tiny_encoders.save_vit(tmp_path)), device="cpu", resize=252, crop=224)
    assert isinstance(encoder, dino.Dino)
    assert encoder.processor.size == {"shortest_edge": 18}, "in proportion: the model takes 16 pixels"
    own = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pixels = by_hand(pictures(1, 24, 48)[0], (36, 18), own.image_mean, own.image_std)[:, 1:17, 10:26]
    with torch.no_grad():
        expected = encoder.model(pixels[None]).last_hidden_state[:, 0]
    torch.testing.assert_close(
        encoder.image_features(pictures(1, 24, 48)), F.normalize(expected, dim=1), rtol=1e-4, atol=1e-5
    )
    image = pictures(1, 24, 48)[0]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})
    found = processor(images=[image], return_tensors="pt", input_data_format="channels_last")["pixel_values"][
        0
    ]
    whole = by_hand(image, (36, 18), mean, std)
    torch.testing.assert_close(found, whole[:, 1:17, 10:26], rtol=0, atol=1e-5)


def test_models_that_are_not_encoders(tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a clip_text_model model; known are clip, siglip"):
        model_type(str(tiny_sd / "text_encoder"))
    with pytest.raises(UserError, match=r"the scoring model .* can't be loaded"):
        load_encoder(str(tmp_path))
    assert set(KINDS) <= set(CLASSES)
