"""Single pictures out of the store's grids."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import examples
from textinv_ray.service.reviewing.pictures import Pictures
from textinv_ray.service.store.pictures import sample_grid, training_grid
from textinv_ray.service.store.store import Store, sample_name


def coloured(*colours: int, side: int = 8) -> np.ndarray:
    return np.stack([np.full((side, side, 3), colour, np.uint8) for colour in colours])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five training images, and two prompts of two seeds: each picture has a colour of its own."""
    store = Store(str(tmp_path))
    examples.finish(store, "a", images=5, sample_prompts=["x {}", "y {}"])
    training = coloured(10, 20, 30, 40, 50)[:, None]
    store.write_concept("a", "training.png", training_grid(training))
    grid = sample_grid({"x {}": coloured(1, 2), "y {}": coloured(3, 4)})
    store.write_concept("a", sample_name(2), grid)
    return store


def colour(data: bytes | None) -> int:
    assert data is not None
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert picture.shape == (8, 8, 3)
    assert picture.min() == picture.max()
    return int(picture[0, 0, 0])


def test_each_picture_is_the_right_one(store: Store) -> None:
    result, pictures = store.result("a"), Pictures(store)
    assert result is not None
    found = [colour(pictures.get(result, "training", index, "full")) for index in range(5)]
    assert found == [10, 20, 30, 40, 50]
    assert [colour(pictures.get(result, "2", index, "full")) for index in range(4)] == [1, 2, 3, 4]


def test_thumbnails_are_small(store: Store) -> None:
    result, pictures = store.result("a"), Pictures(store)
    assert result is not None
    store.write_concept("a", "training.png", training_grid(coloured(9, 9, 9, 9, 9, side=256)[:, None]))
    data = pictures.get(result, "training", 0, "small")
    assert data is not None
    assert Image.open(io.BytesIO(data)).size == (160, 160)
    assert data[:2] == b"\xff\xd8", "JPEG"
    assert (
        data != pictures.get(result, "training", 0, "medium") == pictures.get(result, "training", 0, "full")
    )


@pytest.mark.parametrize(
    ("name", "index"), [("training", 5), ("training", -1), ("2", 4), ("1", 0), ("result", 0), ("9" * 5000, 0)]
)
def test_what_is_not_there(store: Store, name: str, index: int) -> None:
    result = store.result("a")
    assert result is not None
    assert Pictures(store).get(result, name, index, "full") is None


def test_a_damaged_grid_is_not_there(store: Store) -> None:
    result = store.result("a")
    assert result is not None
    store.write_concept("a", "training.png", b"\x89PNG damaged")
    store.remove(f"concepts/a/{sample_name(2)}")
    assert Pictures(store).get(result, "training", 0, "full") is None
    assert Pictures(store).get(result, "2", 0, "full") is None
