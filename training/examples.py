"""Draw the example concepts: six characters that the bundled model never saw, and two inks.

    python -m training.examples

Writes examples/concepts/<concept>/*.png with a concepts.yaml, and examples/manifest.parquet with the pictures inside.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from textinv_ray.manifest import build
from training.build import heldout_identities, render, svgs
from training.effects import two_tone
from training.world import Identity, draw_view

FOLDER = Path("examples")
CHARACTERS = {
    "openPeeps": "ada",
    "bigSmile": "bruno",
    "micah": "chiara",
    "personas": "dorian",
    "toonHead": "elif",
    "miniavs": "finn",
}
INKS = {"violet-ink": ((50, 10, 90), (245, 230, 255)), "green-ink": ((10, 80, 30), (232, 250, 225))}
"""Style -> its dark and its light colour. Training has blue and red ink only."""
INKED_STYLES = ("openPeeps", "micah", "personas", "toonHead", "miniavs")
STYLE_VECTORS = 3
"""Of a style's word: one says little of a style that is new to the model (docs/experiments.md)."""
COUNTS = (5, 4, 5, 6, 5, 4)
SIZE = 128


def draw(
    identities: list[Identity],
    folder: Path,
    seed: int,
    redraw: Callable[[np.ndarray], np.ndarray] = lambda image: image,
) -> None:
    """Write a view of each, changed by `redraw`: float32 (H, W, 3) in [0, 255] to the same."""
    rng = np.random.default_rng(seed)
    drawings = svgs(
        {"style": identity.style, "options": draw_view(identity, rng)["options"]} for identity in identities
    )
    folder.mkdir(parents=True)
    for number, svg in enumerate(drawings, 1):
        pixels = redraw(render(svg, SIZE).astype(np.float32)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png", optimize=True)


def main() -> None:
    pictures = FOLDER / "concepts"
    shutil.rmtree(pictures, ignore_errors=True)
    heldout = heldout_identities()
    settings: dict[str, dict[str, object]] = {}
    for (style, name), count in zip(CHARACTERS.items(), COUNTS, strict=True):
        # The last of each style: the figures in the model card look at the first ones.
        identity = [identity for identity in heldout if identity.style == style][-1]
        draw([identity] * count, pictures / name, seed=len(settings))
        settings[name] = {"initializer_token": "character", "tags": {"drawn_in": style}}
    for name, (dark, light) in INKS.items():
        # One character of each style: what the pictures have in common is the ink.
        of_styles = [[identity for identity in heldout if identity.style == style] for style in INKED_STYLES]
        shown = [identities[-2 - len(settings) % 2] for identities in of_styles]
        draw(shown, pictures / name, len(settings), partial(two_tone, dark=dark, light=light))
        settings[name] = {
            "learnable_property": "style",
            "initializer_token": "drawing",
            "num_vectors": STYLE_VECTORS,
        }
    (pictures / "concepts.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    build.build(str(pictures), str(FOLDER / "manifest.parquet"), embed=True)


if __name__ == "__main__":
    main()
