from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from textinv_ray.concepts.retrieval import Features
from textinv_ray.service.store import features


def test_features_survive_with_the_name_of_their_encoder() -> None:
    made = Features(np.array([[0.6, 0.8], [1, 0]], np.float32), np.array([0.25, 0.5], np.float32))
    encoder, found = features.from_bytes(features.to_bytes(made, "s3://bucket/dino v2"))
    assert encoder == "s3://bucket/dino v2"
    np.testing.assert_allclose(found.pictures, made.pictures, atol=5e-4)
    np.testing.assert_array_equal(found.views, made.views)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"encoder a/pictures": np.ones((2, 3))},
        {"encoder a/pictures": np.ones((2, 3)), "encoder a/views": np.ones(4)},
        {"encoder a/pictures": np.full((2, 3), np.nan), "encoder a/views": np.ones(3)},
        {"encoder a/pictures": np.ones((2, 3)), "encoder b/views": np.ones(3)},
    ],
)
def test_other_files_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"its features are damaged|no features of one encoder"):
        features.from_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(ValueError, match="it can't be read"):
        features.from_bytes(b"damaged")
