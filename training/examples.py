"""Draw the example concepts: six characters and two drawing styles that the bundled model never saw.

    python -m training.examples

Writes examples/concepts/<concept>/*.png with a concepts.yaml, and examples/manifest.parquet with the pictures inside.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from textinv_ray.manifest import build
from training.build import heldout_identities, render, svgs
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
STYLES = {"notionists": "notion-ink", "adventurer": "adventurer-comic"}
COUNTS = (5, 4, 5, 6, 5, 4)
SIZE = 128


def draw(identities: list[Identity], folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawings = svgs(
        {"style": identity.style, "options": draw_view(identity, rng)["options"]} for identity in identities
    )
    folder.mkdir(parents=True)
    for number, svg in enumerate(drawings, 1):
        Image.fromarray(render(svg, SIZE)).save(folder / f"{number:02d}.png", optimize=True)


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
    for style, name in STYLES.items():
        draw(
            [identity for identity in heldout if identity.style == style][-5:],
            pictures / name,
            seed=len(settings),
        )
        settings[name] = {
            "learnable_property": "style",
            "initializer_token": "drawing",
            "tags": {"drawn_in": style},
        }
    (pictures / "concepts.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    build.build(str(pictures), str(FOLDER / "manifest.parquet"), embed=True)


if __name__ == "__main__":
    main()
