"""Single pictures out of a concept's grids, at the size that a page shows them, with the last ones kept in memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from PIL import Image

from textinv_ray.service.store.pictures import TRAINING_COLUMNS, opened
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store, sample_name

TRAINING = "training"
Size = Literal["small", "medium", "full"]
SIDES: dict[Size, int] = {"small": 160, "medium": 384}
"""Most pixels of the longer side; a full one has all it has."""
_KEPT_GRIDS = 12
_KEPT_BYTES = 64 * 2**20

Value = TypeVar("Value")


class Pictures:
    """The pictures of an output. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._grids: _Kept[Image.Image] = _Kept(_KEPT_GRIDS, lambda _: 1)
        self._encoded: _Kept[bytes] = _Kept(_KEPT_BYTES, len)

    def get(self, result: Result, name: str, index: int, size: Size) -> bytes | None:
        """A PNG, or a JPEG where that is smaller than the stored picture; none when there is no such picture.

        name: `training`, or a step that has samples. index: of a training image; of a sample, row by row (a row per
        prompt, a column per seed).
        """
        key = (result.concept_id, result.fingerprint, name, index, size)
        found = self._encoded.get(key)
        if found is None:
            tile = self._tile(result, name, index)
            if tile is None:
                return None
            found = _encode(tile, size)
            self._encoded.put(key, found)
        return found

    def _tile(self, result: Result, name: str, index: int) -> Image.Image | None:
        count, columns = layout(result, name)
        if not 0 <= index < count:
            return None
        key = (result.concept_id, result.fingerprint, name)
        grid = self._grids.get(key)
        if grid is None:
            file = "training.png" if name == TRAINING else sample_name(int(name))
            data = self._store.read_concept(result.concept_id, file)
            if data is None:
                return None
            try:
                grid = opened(data).convert("RGB")
            except ValueError as error:
                self._store.ignore(f"concepts/{result.concept_id}/{file}", str(error))
                return None
            self._grids.put(key, grid)
        width = grid.width // columns
        height = grid.height // -(-count // columns)
        left, top = index % columns * width, index // columns * height
        return grid.crop((left, top, left + width, top + height))


def layout(result: Result, name: str) -> tuple[int, int]:
    """(pictures, columns) of a grid; (0, 1) when the result has none of this name."""
    if name == TRAINING:
        return result.images, max(1, min(result.images, TRAINING_COLUMNS))
    if name in map(str, result.sample_steps):
        return len(result.sample_prompts) * result.images_per_prompt, max(1, result.images_per_prompt)
    return 0, 1


def _encode(tile: Image.Image, size: Size) -> bytes:
    buffer, side = io.BytesIO(), SIDES.get(size)
    if side is None or max(tile.size) <= side:
        tile.save(buffer, "PNG", compress_level=3)
    else:
        tile.thumbnail((side, side), Image.Resampling.LANCZOS)
        tile.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


class _Kept(Generic[Value]):
    """The values that were used last, up to a total size."""

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit, self._size, self._total = limit, size, 0
        self._values: OrderedDict[tuple[object, ...], Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[object, ...]) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: tuple[object, ...], value: Value) -> None:
        with self._lock:
            if key in self._values:
                return
            self._values[key] = value
            self._total += self._size(value)
            while self._total > self._limit and len(self._values) > 1:
                self._total -= self._size(self._values.popitem(last=False)[1])
