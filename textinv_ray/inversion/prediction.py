"""The word that a predictor makes of a concept's images, before its first step."""

from __future__ import annotations

from dataclasses import replace

from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.predictor import Predictor
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.scoring import crop_features


def with_prediction(concept: Concept, scorer: Encoder) -> Concept:
    """The concept with the predicted word as its initial vectors; one without a predictor as it is.

    scorer: the model that the predictor reads features of. Raises ValueError for features of another length.
    """
    if concept.predictor is None:
        return concept
    predictor = Predictor.from_bytes(concept.predictor.tobytes())
    images = crop_features(scorer, concept.images).mean(dim=1).cpu().numpy()
    word = predictor.word(images, concept.num_vectors, concept.learnable_property)
    vectors = {name: tuple(map(tuple, part.tolist())) for name, part in word.items()}
    return replace(concept, initial_vectors=vectors, predictor=None)
