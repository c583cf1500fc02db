"""Draw the training and the held-out images.

    python -m training.build [--out build/mini/drawings] [--images 64000] [--seed 0]

Needs Node.js with `npm ci` run in training/characters (DiceBear draws SVG there); resvg makes pixels of it. Writes
images.npy (uint8, N x 64 x 64 x 3) and rows.jsonl (what each image shows), and the same for held-out characters and
styles in heldout/. The held-out identities themselves are data in this repository: reserved.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import subprocess
from collections.abc import Iterable, Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from training.captions import NAME_COUNT
from training.world import (
    DRAWN,
    HELDOUT_STYLES,
    STYLES,
    TRAINING_ACCESSORIES,
    TRAINING_STYLES,
    Identity,
    draw_identity,
    draw_view,
    names,
)

HELDOUT = Path(__file__).with_name("reserved.json")
DICEBEAR = Path(__file__).with_name("characters")
SIZE = 64
NAMED_VIEWS, HELDOUT_VIEWS, STYLE_VIEWS = 10, 8, 2


def render(svg: str, size: int = SIZE) -> np.ndarray:
    """uint8 (size, size, 3)."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def svgs(drawings: Iterable[dict[str, Any]]) -> list[str]:
    """DiceBear's SVG of each {style, options}."""
    lines = "\n".join(json.dumps(drawing) for drawing in drawings) + "\n"
    node = subprocess.run(
        ["node", "draw.mjs"], cwd=DICEBEAR, input=lines, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in node.stdout.splitlines()]


def row_of(identity: Identity, number: int, name: str | None, view: dict[str, Any]) -> dict[str, Any]:
    """What captions and training know of one image."""
    return {
        "style": identity.style,
        "identity": number,
        "name": name,
        "features": identity.features(),
        "rgb": identity.rgb(),
        "phrases": identity.phrases(),
        "colours": {kind: colour for kind, (colour, _) in identity.colours.items()},
        **{key: view[key] for key in ("background", "expression", "accessory")},
    }


def training_views(images: int, seed: int) -> Iterator[tuple[Identity, int, str | None, dict[str, Any]]]:
    """Four images in ten show named identities, NAMED_VIEWS each; the others two views each of someone new."""
    rng = np.random.default_rng(seed)
    waiting = names(NAME_COUNT)
    named = min(NAME_COUNT, int(images * 0.4) // NAMED_VIEWS)
    number, drawn = 0, 0
    while drawn < images:
        identity = draw_identity(DRAWN[number % len(DRAWN)], rng)
        if identity.reserved:
            continue
        name = waiting[number] if number < named else None
        for _ in range(min(NAMED_VIEWS if name else 2, images - drawn)):
            yield identity, number, name, draw_view(identity, rng, TRAINING_ACCESSORIES)
            drawn += 1
        number += 1


def draw_heldout(seed: int = 77) -> list[dict[str, Any]]:
    """Ten reserved identities of each training style, patterns left out, then 40 of each held-out style."""
    rng, found = np.random.default_rng(seed), []
    characters = [style for style in TRAINING_STYLES if STYLES[style].kind != "pattern"]
    for style, count in [(style, 10) for style in characters] + [(style, 40) for style in HELDOUT_STYLES]:
        while count:
            identity = draw_identity(style, rng)
            if identity.reserved or style in HELDOUT_STYLES:
                found.append(dataclasses.asdict(identity))
                count -= 1
    return found


def heldout_identities() -> list[Identity]:
    return [
        Identity(
            item["style"], item["parts"], {kind: tuple(colour) for kind, colour in item["colours"].items()}
        )
        for item in json.loads(HELDOUT.read_text())
    ]


def heldout_views(seed: int = 78) -> Iterator[tuple[Identity, int, str | None, dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    for number, identity in enumerate(heldout_identities()):
        for _ in range(STYLE_VIEWS if identity.style in HELDOUT_STYLES else HELDOUT_VIEWS):
            yield identity, number, None, draw_view(identity, rng)


def write(
    views: list[tuple[Identity, int, str | None, dict[str, Any]]], folder: Path, shuffle: int | None
) -> None:
    """Draw all views into `folder`, in an order shuffled with a seed if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    if shuffle is not None:
        views = [views[i] for i in np.random.default_rng(shuffle).permutation(len(views))]
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(views), SIZE, SIZE, 3))
    with open(folder / "rows.jsonl", "w") as rows, Pool() as pool:
        for start in range(0, len(views), 4000):
            part = views[start : start + 4000]
            drawings = svgs(
                {"style": identity.style, "options": view["options"]} for identity, _, _, view in part
            )
            images[start : start + len(part)] = pool.map(render, drawings, chunksize=100)
            rows.writelines(json.dumps(row_of(*view)) + "\n" for view in part)
            print(f"drew {start + len(part)} of {len(views)} images in {folder}", flush=True)
    images.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/mini/drawings"))
    parser.add_argument("--images", type=int, default=64000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not HELDOUT.exists():
        HELDOUT.write_text("[\n" + ",\n".join(json.dumps(item) for item in draw_heldout()) + "\n]\n")
    write(list(heldout_views()), options.out / "heldout", None)
    write(list(training_views(options.images, options.seed)), options.out, options.seed)


if __name__ == "__main__":
    main()
