"""Draw the training and the held-out images.

    python -m training.build [--out build/mini/drawings] [--images 64000] [--seed 1]
    python -m training.build --to drawings.xz            # a few MB; where there is no Node.js then:
    python -m training.build --drawn drawings.xz

Needs Node.js with `npm ci` run in training/characters (DiceBear draws SVG there); resvg makes pixels of it. Writes
images.npy (uint8, N x 64 x 64 x 3) and rows.jsonl (what each image shows), the same for held-out characters and styles
in heldout/, and in edited/ for the same characters as the card's edits ask for them. The held-out identities
themselves are data in this repository: reserved.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import lzma
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from training.captions import NAME_COUNT
from training.effects import apply_effect, effect_of
from training.world import (
    DRAWN,
    EDITED,
    HELDOUT_STYLES,
    STYLES,
    TRAINING_ACCESSORIES,
    TRAINING_STYLES,
    Identity,
    compose,
    draw_identity,
    draw_view,
    edited,
    names,
)

HELDOUT = Path(__file__).with_name("reserved.json")
DICEBEAR = Path(__file__).with_name("characters")
SIZE = 64
SEED = 1
"""Whoever has a name is drawn from it: mini-sd's table has these, and mini-sdxl's second encoder must have the same."""
NAMED_VIEWS, HELDOUT_VIEWS, EDITED_VIEWS, STYLE_VIEWS = 10, 8, 4, 2


def cores() -> int:
    """That this process may run on: a container shows all of its machine's as `os.cpu_count()`."""
    return len(os.sched_getaffinity(0))


def render(svg: str, size: int = SIZE) -> np.ndarray:
    """uint8 (size, size, 3)."""
    return np.asarray(_rendered(svg, size).convert("RGB"))


def opacity(svg: str, size: int = SIZE) -> np.ndarray:
    """uint8 (size, size): 0 where nothing is drawn."""
    return np.asarray(_rendered(svg, size).convert("RGBA").getchannel("A"))


def _rendered(svg: str, size: int) -> Image.Image:
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return Image.open(io.BytesIO(png))


def svgs(drawings: Iterable[dict[str, Any]]) -> list[str]:
    """DiceBear's SVG of each {style, options, over, disc}, see draw.mjs."""
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
        **({"composed": True} if "over" in view or "disc" in view else {}),
    }


def training_views(images: int, seed: int) -> Iterator[View]:
    """Four images in ten show named identities, NAMED_VIEWS each; the others two views each of someone new."""
    # What is composed takes its dice from elsewhere, so that identities are the same ones with other compositions.
    rng, composing = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    waiting = names(NAME_COUNT)
    named = min(NAME_COUNT, int(images * 0.4) // NAMED_VIEWS)
    number, drawn = 0, 0
    while drawn < images:
        identity = draw_identity(DRAWN[number % len(DRAWN)], rng)
        if identity.reserved:
            continue
        name = waiting[number] if number < named else None
        for _ in range(min(NAMED_VIEWS if name else 2, images - drawn)):
            view = draw_view(identity, rng, TRAINING_ACCESSORIES)
            compose(identity, view, composing)
            yield identity, number, name, view
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


def edited_views(seed: int = 79) -> Iterator[View]:
    """EDITED_VIEWS of each of EDITED, of every held-out character in turn."""
    rng = np.random.default_rng(seed)
    for number, identity in enumerate(heldout_identities()):
        if identity.style in HELDOUT_STYLES:
            continue
        for edit in EDITED:
            for _ in range(EDITED_VIEWS):
                view = draw_view(identity, rng, accessories=0)
                edited(identity, view, edit, rng)
                yield identity, number, None, view


def heldout_views(seed: int = 78) -> Iterator[View]:
    rng = np.random.default_rng(seed)
    for number, identity in enumerate(heldout_identities()):
        for _ in range(STYLE_VIEWS if identity.style in HELDOUT_STYLES else HELDOUT_VIEWS):
            yield identity, number, None, draw_view(identity, rng)


View = tuple[Identity, int, str | None, dict[str, Any]]
Drawing = tuple[str, str]
"""SVG, and the row that says what it shows, as a line of JSON."""
CHUNK = 4000
SQUEEZE = {"id": lzma.FILTER_LZMA2, "preset": 4, "dict_size": 2**26}
"""The window holds some ten thousand drawings."""


def shuffled(views: list[View], seed: int) -> list[View]:
    return [views[i] for i in np.random.default_rng(seed).permutation(len(views))]


def draw(views: Sequence[View]) -> Iterator[Drawing]:
    for start in range(0, len(views), CHUNK):
        part = views[start : start + CHUNK]
        drawn = svgs(
            {
                "style": identity.style,
                **{key: view[key] for key in ("options", "over", "disc") if key in view},
            }
            for identity, _, _, view in part
        )
        yield from zip(drawn, (json.dumps(row_of(*view)) for view in part), strict=True)


def write(drawings: Iterator[Drawing], count: int, folder: Path) -> None:
    """Make pixels of `count` drawings in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
    # Fresh interpreters: a fork inherits locks that other threads of this process hold, and may wait for them for ever.
    pool = ProcessPoolExecutor(cores(), mp_context=get_context("spawn"))
    with open(folder / "rows.jsonl", "w") as rows, pool:
        for start in range(0, count, CHUNK):
            part = list(islice(drawings, min(CHUNK, count - start)))
            images[start : start + len(part)] = list(pool.map(render, (svg for svg, _ in part), chunksize=50))
            rows.writelines(row + "\n" for _, row in part)
            print(f"drew {start + len(part)} of {count} images in {folder}", flush=True)
    images.flush()


def pack(path: Path, sets: Sequence[tuple[int, Iterator[Drawing]]]) -> None:
    """Write sets of drawings into one file; most of an SVG stands in others as well, so that little is left of each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", filters=[SQUEEZE]) as file:
        file.write(" ".join(str(count) for count, _ in sets) + "\n")
        for _, drawings in sets:
            for svg, row in drawings:
                file.write(f"{row}\n{json.dumps(svg)}\n")


def folders_of(out: Path) -> tuple[Path, ...]:
    """Where the sets are written, in their order: edited views, other held-out ones, training."""
    return out / "edited", out / "heldout", out


Set = tuple[Path, int, bool]
"""Folder, number of drawings, and whether data.npy is written there, which has the effects, beside images.npy."""


def unpack(path: Path, folders: Sequence[Path], redrawn: bool = False) -> None:
    """Make pixels of a file that `pack` wrote, a folder for each of its sets; redrawn: the last one's with effects too.

    Each process reads the whole file, which costs a fiftieth of what drawing does, and draws its share.
    """
    with lzma.open(path, "rt") as file:
        counts = [int(count) for count in file.readline().split()]
        last = len(counts) - 1
        sets = [
            (folder, count, redrawn and number == last)
            for number, (folder, count) in enumerate(zip(folders, counts, strict=True))
        ]
        for folder, count, with_effects in sets:
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("images.npy", "data.npy")[: 1 + with_effects]:
                np.lib.format.open_memmap(folder / name, "w+", np.uint8, (count, SIZE, SIZE, 3)).flush()
        parts = cores()
        with ProcessPoolExecutor(parts, mp_context=get_context("spawn")) as pool:
            shares = [pool.submit(draw_share, path, sets, part, parts) for part in range(parts)]
            for folder, count, _ in sets:
                with open(folder / "rows.jsonl", "w") as rows:
                    rows.writelines(islice(file, 0, 2 * count, 2))
            for share in shares:
                share.result()


def draw_share(path: Path, sets: Sequence[Set], part: int, parts: int) -> None:
    """Make pixels of every `parts`-th drawing, from the one with the number `part` on."""
    with lzma.open(path, "rt") as file:
        file.readline()
        for folder, count, with_effects in sets:
            images = np.load(folder / "images.npy", mmap_mode="r+")
            made = np.load(folder / "data.npy", mmap_mode="r+") if with_effects else None
            for index, svg in enumerate(islice(file, 1, 2 * count, 2)):
                if index % parts == part:
                    images[index] = image = render(json.loads(svg))
                    if made is not None:
                        effect = effect_of(index)
                        made[index] = apply_effect(image, effect) if effect else image
                if part == 0 and (index + 1) % CHUNK == 0:
                    print(f"drew some {index + 1} of {count} images in {folder}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/mini/drawings"))
    parser.add_argument("--images", type=int, default=64000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--to", type=Path, help="write drawings into this file instead of pixels")
    parser.add_argument("--drawn", type=Path, help="make pixels of the drawings in this file")
    options = parser.parse_args()
    if not HELDOUT.exists():
        HELDOUT.write_text("[\n" + ",\n".join(json.dumps(item) for item in draw_heldout()) + "\n]\n")
    folders = folders_of(options.out)
    if options.drawn:
        unpack(options.drawn, folders)
        return
    training = shuffled(list(training_views(options.images, options.seed)), options.seed)
    sets = [(len(views), draw(views)) for views in (list(edited_views()), list(heldout_views()), training)]
    if options.to:
        pack(options.to, sets)
        return
    for (count, drawings), folder in zip(sets, folders, strict=True):
        write(drawings, count, folder)


if __name__ == "__main__":
    main()
