"""A concept's looks in MLflow: one picture each: training images, initializer, the word now, and edits side by side.

MLflow puts a picture into a square and cuts off the lower part of that, under the run's parameters. So a look is a
square whose upper half has the pictures. MLflow's slider shows the same step of all runs: the last look has the same
step for all concepts of a job, though a stopping rule ends them at different steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from textinv_ray.service.store.history import History
from textinv_ray.service.store.pictures import TRAINING_COLUMNS, opened
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store, sample_name

KEY = "look"
_ROWS = 2
_SIDE = 192  # pixels of each picture
_GAP = 4
_TITLE = 22  # pixels above each column
_LIGHT, _DARK = (255, 255, 255), (60, 60, 60)


@dataclass(frozen=True)
class Look:
    """A step at which samples were made."""

    step: int
    """Optimizer steps."""
    shown_at: int
    """The step that MLflow gets."""
    time_ms: int


def of_history(history: History | None, result: Result | None, last: int) -> list[Look]:
    """The looks that are sure: of a concept that is learned, all but the newest, which may turn out to be the last.

    last: step of the last look of every concept.
    """
    sampled = [point for point in history.points if point.sampled] if history else []
    looks = [Look(point.step, point.step, point.time_ms) for point in sampled]
    if result is None:
        is_newest = bool(looks) and history is not None and history.points[-1].step == looks[-1].step
        return looks[:-1] if is_newest and looks[-1].step > 0 else looks
    return [*looks[:-1], *(Look(look.step, max(last, look.step), look.time_ms) for look in looks[-1:])]


def picture(store: Store, concept_id: str, step: int, seeds: int, images: int | None) -> Image.Image | None:
    """A look as one picture; none when its samples aren't there. Raises ValueError for damaged ones.

    Columns: training images, samples of the initializer, of the word at `step`, and of editing prompts. Without
    editing prompts there are more training images. What isn't there stays empty, so that looks can be compared.
    seeds: pictures of each prompt. images: training images; None where that isn't known yet.
    """
    now = store.read_concept(concept_id, sample_name(step))
    if now is None:
        return None
    tiles = _tiles(now, seeds)
    before = store.read_concept(concept_id, sample_name(0)) if step else now
    data = store.read_concept(concept_id, "training.png")
    training = _tiles(data, min(images or TRAINING_COLUMNS, TRAINING_COLUMNS)) if data else []
    edits = tiles[seeds:]
    of_each = edits[::seeds]  # the first picture of each editing prompt
    columns = [
        ("initializer", _tiles(before, seeds)[:seeds] if before else []),
        (f"step {step}", tiles[:seeds]) if step else ("", []),
    ]
    if edits:
        columns = [("training", training), *columns, ("edits", of_each if len(of_each) >= _ROWS else edits)]
    else:
        columns = [("training", training[::2]), ("", training[1::2]), *columns]
    return _composed(columns)


def _tiles(data: bytes, columns: int) -> list[Image.Image]:
    """The pictures of a grid, row by row."""
    grid = opened(data).convert("RGB")
    side = max(1, grid.width // max(1, columns))
    return [
        grid.crop((left, top, left + side, top + side))
        for top in range(0, grid.height - side + 1, side)
        for left in range(0, grid.width - side + 1, side)
    ]


def _composed(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A column of _ROWS pictures for each title, in the upper part of a square whose rest is transparent."""
    width = len(columns) * (_SIDE + _GAP) - _GAP
    sheet = Image.new("RGBA", (width, width), (0, 0, 0, 0))
    sheet.paste(_LIGHT, (0, 0, width, _TITLE))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for index, (title, tiles) in enumerate(columns):
        left = index * (_SIDE + _GAP)
        draw.text((left + 2, 2), title, _DARK, font)
        for row, tile in enumerate(tiles[:_ROWS]):
            small = tile.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, _TITLE + row * (_SIDE + _GAP)))
    return sheet
