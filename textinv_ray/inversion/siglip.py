"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025): encoders trained with a sigmoid loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor

from textinv_ray.inversion.encoders import features_in_batches, loading
from textinv_ray.inversion.families.precision import choose_device, choose_dtype


@dataclass(eq=False, repr=False)
class Siglip:
    """A SigLIP model, such as `google/siglip-base-patch16-224` or `google/siglip2-base-patch16-naflex`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    processor: BaseImageProcessor
    reads_text = True

    def __post_init__(self) -> None:
        self.model.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str, *, device: str = "auto", dtype: str = "auto") -> Siglip:
        """Loads a folder or Hub id of a SigLIP model with its tokenizer and processor. Raises UserError."""
        place = choose_device(device)
        with loading("SigLIP model", path):
            model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=choose_dtype(dtype, place))
            tokenizer = AutoTokenizer.from_pretrained(path)
            processor = AutoImageProcessor.from_pretrained(path, backend="pil")
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
        """Text embeddings: float32 (n, d) of Euclidean length 1. Texts beyond the model's length are truncated.

        As in training, texts are lower-cased and padded to the model's length, and the padding isn't masked.
        """
        limit = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            [text.lower() for text in texts],
            padding="max_length",
            truncation=True,
            max_length=limit,
            padding_side="right",
            return_tensors="pt",
        )["input_ids"].to(self.model.device)
        return F.normalize(self.model.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)
