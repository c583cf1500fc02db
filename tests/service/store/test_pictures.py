"""Pictures in the store."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.service.store import pictures
from textinv_ray.service.store.pictures import opened, png, training_grid, training_images


@given(st.integers(1, 7), st.integers(1, 9))
def test_training_images_come_back_from_their_grid(count: int, side: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 2, side, side, 3), dtype=np.uint8)
    assert np.array_equal(training_images(training_grid(images), count), images[:, 0])


def test_a_grid_of_many_images_stays_of_a_size_that_can_be_opened() -> None:
    """At 256 pixels each, 2,731 images were more than Pillow opens."""
    image = np.full((1, 1, 256, 256, 3), 200, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "TRAINING_PIXELS", 3 * 10 * 64 * 64)
        grid = training_grid(np.broadcast_to(image, (30, 1, 256, 256, 3)))
    assert opened(grid).size == (3 * 64, 10 * 64)
    assert training_images(grid, 30).shape == (30, 64, 64, 3)


@pytest.mark.parametrize(
    "data", [b"", b"PNG", png(np.zeros((64, 64, 3), np.uint8))[:-60], b"GIF89a" + bytes(99)]
)
def test_damaged_pictures(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is no picture, or damaged"):
        opened(data)


def test_another_picture_is_no_grid() -> None:
    with pytest.raises(ValueError, match="no grid of 7 images"):
        training_images(png(np.zeros((2, 100, 3), np.uint8)), 7)
