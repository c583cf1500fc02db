"""Make the pixels that mini-sdxl's trainer on a GPU holds there: drawings with their effects, as it is shown them.

    python -m training.pixels

That takes a core a millisecond per image; here all cores do it, once.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np

from training.build import SIZE, cores
from training.common import BUILD
from training.sdxl import Views

CHUNK = 1000


@cache
def _data() -> Views:
    return Views(BUILD / "drawings")


def _made(start: int) -> np.ndarray:
    data = _data()
    return data.pixels(range(start, min(start + CHUNK, len(data))))


def main() -> None:
    data = _data()
    made = np.lib.format.open_memmap(data.made, "w+", np.uint8, (len(data), SIZE, SIZE, 3))
    starts = range(0, len(data), CHUNK)
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        for start, part in zip(starts, pool.map(_made, starts), strict=True):
            made[start : start + len(part)] = part
    made.flush()
    print(f"{data.made}: {len(data)} images", flush=True)


if __name__ == "__main__":
    main()
