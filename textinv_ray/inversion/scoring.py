"""CLIP scores: how well samples show the concept (reconstruction), and follow the prompt (editability)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from textinv_ray.inversion.encoders import Encoder, features_in_batches, loading
from textinv_ray.inversion.families.precision import choose_device, choose_dtype


@dataclass(eq=False, repr=False)
class Scorer:
    """A CLIP model (Radford et al. 2021). All similarities are raw cosines, in [-1, 1]."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessorPil
    """The Pillow backend, so that scores don't depend on whether torchvision is installed."""
    reads_text = True

    def __post_init__(self) -> None:
        self.model.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str, *, device: str = "auto", dtype: str = "auto") -> Scorer:
        """Loads a `CLIPModel` with its tokenizer and processor from a folder or Hub id. Raises UserError.

        `device` "auto": CUDA when there is one. `dtype` "auto": float16 on CUDA, float32 elsewhere.
        """
        place = choose_device(device)
        with loading("scoring model", path):
            model = CLIPModel.from_pretrained(path, use_safetensors=True, dtype=choose_dtype(dtype, place))
            tokenizer = CLIPTokenizer.from_pretrained(path)
            processor = CLIPImageProcessorPil.from_pretrained(path)
        return cls(model.to(place), tokenizer, processor)

    def image_features(self, images: np.ndarray) -> Tensor:
        """Image embeddings: uint8 (n, H, W, 3) -> float32 (n, d) of Euclidean length 1."""
        return features_in_batches(
            images,
            self.processor,
            self.model,
            lambda **inputs: self.model.get_image_features(**inputs).pooler_output,
        )

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings: float32 (n, d) of Euclidean length 1. Texts beyond the model's length are truncated."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.model.device)
        return F.normalize(self.model.get_text_features(**tokens).pooler_output.float(), dim=-1)


def crop_features(encoder: Encoder, images: np.ndarray) -> Tensor:
    """Features of a concept's images: uint8 (N, A, S, S, 3) -> float32 (N, A, d) of length 1."""
    return encoder.image_features(images.reshape(-1, *images.shape[2:])).reshape(*images.shape[:2], -1)


def image_similarity(samples: Tensor, reference: Tensor) -> float:
    """clip_image_similarity: the mean cosine over all pairs of a sample and a training image, in [-1, 1].

    samples: (n, d), reference: (m, d), of length 1. The reconstruction score of Gal et al. 2022, section 5.1, as the
    authors' code computes it (by the paper's text, embeddings are averaged first).
    """
    return float((samples @ reference.T).mean())


def similarity_between_images(features: Tensor) -> float:
    """clip_image_similarity of training images with each other: the mean cosine over crops of different images.

    features: (N, A, d) of N > 1 images with A crops each, of length 1. Pairs of crops of the same image don't count.
    """
    crops = features.flatten(0, 1)
    cosines = crops @ crops.T
    count, per_image = features.shape[:2]
    blocks = cosines.reshape(count, per_image, count, per_image)
    same_image = blocks.diagonal(dim1=0, dim2=2)
    return float((cosines.sum() - same_image.sum()) / (count * (count - 1) * per_image**2))


def text_similarity(samples: Tensor, text: Tensor) -> float:
    """clip_text_similarity: the mean cosine of samples with a prompt without the word, in [-1, 1].

    samples: (n, d), text: (d,), of length 1. The editability score of Gal et al. 2022, section 5.1.
    """
    return float((samples @ text).mean())


def without_word(prompt: str) -> str:
    """The text that samples of an editing prompt are compared with: the prompt without `{}`, as in the authors' code.

    "a photo of {} on the beach" -> "a photo of on the beach".
    """
    return " ".join(prompt.replace("{}", " ").split())
