from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from textinv_ray.concepts.image_features import ImageFeatures


def test_they_come_back_with_what_they_depend_on() -> None:
    made = ImageFeatures(
        np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32), "s3://b/clip", "abc"
    )
    found = ImageFeatures.from_bytes(made.to_bytes())
    np.testing.assert_allclose(found.images, made.images, atol=2e-3)
    assert (found.scorer, found.model) == ("s3://b/clip", "abc")
    assert ImageFeatures.from_bytes(found.to_bytes()).images.tobytes() == found.images.tobytes()
    assert found.to_bytes() == made.to_bytes()


NOTE = {"textinv_ray": '{"scorer": "a", "model": "b"}'}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"images": np.ones((2, 3))}, None),
        ({"images": np.ones((2, 3))}, {"textinv_ray": "[]"}),
        ({"images": np.ones((2, 3))}, {"textinv_ray": '{"scorer": "a"}'}),
        ({"other": np.ones((2, 3))}, NOTE),
        ({"images": np.ones(3)}, NOTE),
        ({"images": np.ones((0, 3))}, NOTE),
        ({"images": np.full((2, 3), np.nan)}, NOTE),
    ],
)
def test_other_files_are_refused(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None) -> None:
    with pytest.raises(ValueError, match=r"it can't be read|its features are damaged"):
        ImageFeatures.from_bytes(safetensors.numpy.save(tensors, metadata))


@pytest.mark.parametrize("data", [b"", b"damaged", b"\xff" * 64])
def test_damage_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="it can't be read"):
        ImageFeatures.from_bytes(data)
