"""Pictures in the store."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.service.store.pictures import training_grid, training_images


@given(st.integers(1, 7), st.integers(1, 9))
def test_training_images_come_back_from_their_grid(count: int, side: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 2, side, side, 3), dtype=np.uint8)
    assert np.array_equal(training_images(training_grid(images), count), images[:, 0])
