"""A look as one picture, and which looks a run gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import examples
from textinv_ray.service.store.history import History
from textinv_ray.service.store.pictures import sample_grid, training_grid
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.tracking import looks

TILE = 196  # a picture and the gap behind it


def coloured(*colours: int) -> np.ndarray:
    return np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in colours])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Each picture has a colour of its own: training 10 to 40, before 50, 51, now 60, 61, edits 70, 71 and 80, 81."""
    store = Store(str(tmp_path))
    store.write_concept("a", "training.png", training_grid(coloured(10, 20, 30, 40)[:, None]))
    prompts = ("{}", "x {}", "y {}")
    for step, first in ((0, 50), (2, 60)):
        grid = {
            prompt: coloured(first + 10 * row, first + 10 * row + 1) for row, prompt in enumerate(prompts)
        }
        store.write_concept("a", sample_name(step), sample_grid(grid))
    return store


def colours(store: Store, step: int) -> list[list[int]]:
    """Of the pictures of a look, row by row."""
    picture = looks.picture(store, "a", step, seeds=2, images=4)
    assert picture is not None
    assert picture.width == picture.height, "MLflow puts it into a square"
    pixels = np.asarray(picture)
    assert pixels[picture.height * 11 // 20 :, :, 3].max() == 0, "of which it shows the upper part"
    return [
        [int(pixels[22 + row * TILE + 96, column * TILE + 96, 0]) for column in range(4)] for row in range(2)
    ]


def test_side_by_side(store: Store) -> None:
    assert colours(store, 2) == [[10, 50, 60, 70], [20, 51, 61, 80]]
    assert colours(store, 0) == [[10, 50, 0, 60], [20, 51, 0, 70]]


def test_what_is_missing(store: Store) -> None:
    assert looks.picture(store, "a", 1, 2, None) is None
    store.remove("concepts/a/training.png")
    assert colours(store, 2) == [[0, 50, 60, 70], [0, 51, 61, 80]]


def test_without_editing_prompts(store: Store) -> None:
    store.write_concept("a", sample_name(2), sample_grid({"{}": coloured(60, 61)}))
    assert colours(store, 2) == [[10, 20, 50, 60], [30, 40, 51, 61]]


def test_the_last_look_has_the_same_step_for_all() -> None:
    """The newest one of a concept that is learned may be the last: it waits."""
    history = History("s", "r")
    for step in (0, 3, 5):
        point = history.at(step)
        point.sampled = True
    steps = [
        (look.step, look.shown_at) for look in looks.of_history(history, examples.result("a", steps=5), 9)
    ]
    assert steps == [(0, 0), (3, 3), (5, 9)]
    assert [look.step for look in looks.of_history(history, None, 9)] == [0, 3]
    history.at(6)
    assert [look.step for look in looks.of_history(history, None, 9)] == [0, 3, 5]
    assert looks.of_history(None, None, 9) == []
