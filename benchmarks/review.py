"""How long does a reviewer wait, and how many keys does a decision take? `textinv review` in headless Chromium.

An output of so many concepts is written with the store's own writers: pictures of 512 px, as Stable Diffusion's. Then
the page is opened and every concept is decided by one key as soon as all its pictures are shown. The time that a person
looks at the pictures is not part of it: `--look` says how long that is to be.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import safetensors.numpy
from PIL import Image, ImageFilter

from benchmarks import measure
from benchmarks.finished_store import STEPS, history_of, result_of
from tests.support import browser
from textinv_ray.service.reviewing.serve import ReviewServer
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.pictures import sample_grid, training_grid
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.views import results_table

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROMPTS = ("a photo of {}", "a photo of {} on the beach", "an oil painting of {}")
IMAGES, SEEDS = 5, 2
_VARIANTS = 8  # of pictures: concepts share them, so that writing doesn't take longer than measuring
_SHOWN = """() => {
    const pictures = [...document.querySelectorAll('main .contact img')];
    return pictures.length > 0 && pictures.every(img => img.complete && img.naturalWidth > 0);
}"""
_ANOTHER = "before => document.querySelector('main h2')?.textContent !== before"


def fill(store: Store, concepts: int, side: int) -> None:
    """Writes finished concepts, with as many pictures as a job of the SD presets with three prompts."""
    rng = np.random.default_rng(0)
    grids = []
    for _ in range(_VARIANTS):
        training = np.stack([_picture(rng, side) for _ in range(IMAGES)])[:, None]
        samples = [
            {prompt: np.stack([_picture(rng, side) for _ in range(SEEDS)]) for prompt in PROMPTS}
            for _ in ("before", "after")
        ]
        grids.append((training_grid(training), *map(sample_grid, samples)))
    history = history_of().to_bytes()
    for index in range(concepts):
        vectors = rng.standard_normal((1, 768)).astype(np.float32)
        concept_id = f"concept-{index:05d}"
        key = Key(f"row {index}", "")
        before, after = rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.9)
        changes = {
            "images": IMAGES,
            "sample_prompts": PROMPTS,
            "images_per_prompt": SEEDS,
            "clip_image_similarity_initializer": before,
            "clip_image_similarity": after,
        }
        result = result_of(concept_id, key, vectors).model_copy(update=changes)
        names = ("training.png", sample_name(0), sample_name(STEPS))
        for name, data in zip(names, grids[index % _VARIANTS], strict=True):
            store.write_concept(concept_id, name, data)
        word = safetensors.numpy.save({result.placeholder_token: vectors})
        store.finish(result, {"learned_embeds.safetensors": word, "history.parquet": history})
    results_table.write(store, StoredResults.read(store))


def _picture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Soft noise: about as large a PNG as that of a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
    soft = coarse.filter(ImageFilter.GaussianBlur(2)).resize((side, side), Image.Resampling.BICUBIC)
    grain = rng.integers(0, 8, (side, side, 3), dtype=np.uint8)
    return np.asarray(soft) // 2 + grain


def decide(page: Page, store: Store, concepts: int, look_s: float) -> dict[str, float]:
    """Decides on every concept by one key each. Returns the figures."""
    waits, keys, start = [], 0, time.perf_counter()
    page.wait_for_function(_SHOWN)
    for index in range(concepts):
        time.sleep(look_s)
        heading = page.inner_text("main h2")
        pressed = time.perf_counter()
        page.keyboard.press("r" if index % 4 == 3 else "a")
        keys += 1
        if index + 1 < concepts:
            page.wait_for_function(_ANOTHER, arg=heading)
            page.wait_for_function(_SHOWN)
            waits.append(1000 * (time.perf_counter() - pressed))
    last = time.perf_counter()
    while len(store.names("reviews")) < concepts:
        time.sleep(0.005)
    stored = time.perf_counter()
    assert sum(decision.verdict == "rejected" for decision in store.decisions()) == concepts // 4
    return {
        "keys": keys,
        "from the key to all pictures of the next concept, median ms": statistics.median(waits),
        "the same, 95 of 100 within ms": float(np.quantile(waits, 0.95)),
        "from the last key to all decisions in the store, ms": 1000 * (stored - last),
        "in all, s": last - start,
    }


def run(concepts: int, decided: int, side: int, look_s: float) -> dict[str, float]:
    """Writes the output, opens the page and decides on `decided` of its concepts."""
    with tempfile.TemporaryDirectory() as folder, browser.opened() as chromium:
        store = Store(folder)
        fill(store, concepts, side)
        begun = time.perf_counter()
        server = ReviewServer(store, reviewer="benchmark", on_decision=lambda _: None)
        read = time.perf_counter()
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        page = chromium.new_page(viewport={"width": 1500, "height": 950})
        page.goto(server.url)
        page.wait_for_selector("body[data-ready]", state="attached")
        page.wait_for_function(_SHOWN)
        shown = time.perf_counter()
        entries = page.locator("#list .entry").count()
        figures = decide(page, store, decided, look_s) if decided else {}
        server.stop()
        thread.join(20)
    return {
        "the command reads the store, s": read - begun,
        "the page shows the first concept after, s": shown - read,
        "entries of the list in the page": entries,
        **figures,
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concepts", type=int, default=100)
    parser.add_argument("--decide", type=int, help="how many to decide on; default: all")
    parser.add_argument("--side", type=int, default=512, help="pixels of a picture")
    parser.add_argument("--look", type=float, default=0.0, help="seconds to look at each concept")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    decided = options.concepts if options.decide is None else options.decide
    figures = run(options.concepts, decided, options.side, options.look)
    print(measure.machine_line())
    for name, value in figures.items():
        print(f"{name:60} {value:10.4g}")
    measure.write_json(options.json, {"figures": figures})


if __name__ == "__main__":
    main()
