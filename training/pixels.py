"""Make the pixels that trainers on a GPU hold there: drawings with their effects, and as mini-sdxl is shown them.

    python -m training.pixels

Redrawing takes a core most of a millisecond per image, and each trainer would do it again; here all cores do it once.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np

from training.build import SIZE, cores
from training.common import BUILD, Data
from training.sdxl import Views

CHUNK = 1000
KINDS = {kind.__name__: kind for kind in (Data, Views)}


@cache
def _data(kind: str) -> Data:
    return KINDS[kind](BUILD / "drawings")


def _made(kind: str, start: int) -> np.ndarray:
    data = _data(kind)
    return data.pixels(range(start, min(start + CHUNK, len(data))))


def main() -> None:
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        for kind in KINDS:
            data = _data(kind)
            made = np.lib.format.open_memmap(data.made, "w+", np.uint8, (len(data), SIZE, SIZE, 3))
            starts = range(0, len(data), CHUNK)
            for start, part in zip(starts, pool.map(_made, [kind] * len(starts), starts), strict=True):
                made[start : start + len(part)] = part
            made.flush()
            print(f"{data.made}: {len(data)} images", flush=True)


if __name__ == "__main__":
    main()
