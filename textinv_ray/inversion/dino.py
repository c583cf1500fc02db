"""DINO features (Caron et al. 2021; Oquab et al. 2023): similarity of images by a model trained without text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from textinv_ray.inversion.encoders import features_in_batches, loading
from textinv_ray.inversion.families.precision import choose_device, choose_dtype


@dataclass(eq=False, repr=False)
class Dino:
    """A vision transformer with a class token: ViT, DINO, DINOv2, DINOv3 (`facebook/dino-vits16` and others)."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    reads_text = False

    def __post_init__(self) -> None:
        self.model.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str, *, device: str = "auto", dtype: str = "auto") -> Dino:
        """Loads a folder or Hub id of a ViT or DINO model with its image processor. Raises UserError."""
        place = choose_device(device)
        with loading("DINO model", path):
            config = AutoConfig.from_pretrained(path)
            # The layer on top of the class token, which scores don't use, is missing in DINO's weights
            options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
            model = AutoModel.from_pretrained(
                path, use_safetensors=True, dtype=choose_dtype(dtype, place), **options
            )
            # The Pillow backend, so that scores don't depend on whether torchvision is installed
            processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        return cls(model.to(place), processor)

    def image_features(self, images: np.ndarray) -> Tensor:
        """The class token of the last layer: uint8 (n, H, W, 3) -> float32 (n, d) of Euclidean length 1."""
        return features_in_batches(
            images, self.processor, self.model, lambda **inputs: self.model(**inputs).last_hidden_state[:, 0]
        )

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Raises ValueError: the model reads no text."""
        raise ValueError("the model reads no text")
