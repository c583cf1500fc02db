from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from textinv_ray.concepts.retrieval import Features
from textinv_ray.service.store import features


def test_features_survive_by_the_name_of_their_encoder() -> None:
    one = Features(np.array([[0.6, 0.8], [1, 0]], np.float32), np.array([0.25, 0.5], np.float32))
    other = Features(np.zeros((0, 3), np.float32), np.ones(3, np.float32))
    found = features.from_bytes(features.to_bytes({"s3://bucket/dino v2": one, "clip": other}))
    assert found.keys() == {"s3://bucket/dino v2", "clip"}
    np.testing.assert_allclose(found["s3://bucket/dino v2"].pictures, one.pictures, atol=5e-4)
    np.testing.assert_array_equal(found["s3://bucket/dino v2"].views, one.views)
    assert found["clip"].pictures.shape == (0, 3)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a/pictures": np.ones((2, 3))},
        {"a/pictures": np.ones((2, 3)), "a/views": np.ones(4)},
        {"a/pictures": np.full((2, 3), np.nan), "a/views": np.ones(3)},
        {"a/pictures": np.ones((2, 3)), "b/views": np.ones(3)},
    ],
)
def test_other_files_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="its features are damaged"):
        features.from_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(ValueError, match="it can't be read"):
        features.from_bytes(b"damaged")
