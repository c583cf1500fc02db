"""The README's picture: what the demo learned, a row per concept.

    python examples/gallery.py outputs/demo docs/learned.png

Columns: two training images | the initializer word | the learned word, twice | the learned word in two edits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from textinv_ray.concepts import images
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import Backbone, load_backbone, load_learned_embeds, sample_images
from textinv_ray.manifest.columns import Row
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models import sources

EDITS = {
    "object": ("a photo of a {} on a blue background", "a photo of a {} with sunglasses"),
    "style": (
        "a picture of a person with red hair in the style of {}",
        "a picture of a person with a beard in the style of {}",
    ),
}
PROMPTS = {"object": "a photo of a {}", "style": "a painting in the style of {}"}
SCALE, SIZE = 2, 64


def row_of_pictures(backbone: Backbone, row: Row, folder: Path, config: JobConfig, base: str) -> np.ndarray:
    """uint8 (7, 64, 64, 3)."""
    token, vectors = load_learned_embeds(backbone, (folder / "learned_embeds.safetensors").read_bytes())
    kind = row.get("learnable_property") or "object"
    prepared = images.prepare(
        row["images"], base=base, config=config.data, resolution=backbone.resolution, seed=0
    )
    training = prepared.pixels[:2, 0]
    start = PROMPTS[kind].format(row.get("initializer_token") or config.training.initializer_token)
    prompts = [PROMPTS[kind].format(token)] * 2 + [edit.format(token) for edit in EDITS[kind]]
    before = sample_images(backbone, {}, [start], [0], config.review)
    after = sample_images(backbone, {token: torch.as_tensor(vectors)}, prompts, [0, 1, 2, 3], config.review)
    return np.concatenate([training, before, after])


def main() -> None:
    output, target = Path(sys.argv[1]), Path(sys.argv[2])
    config, source = JobConfig.load("mini"), Manifest.open("examples/manifest.parquet")
    backbone = load_backbone(sources.resolve(config.model.path))
    rows = list(source.rows())
    label = 110
    sheet = Image.new("RGB", (label + 7 * SIZE * SCALE + 24, len(rows) * SIZE * SCALE + 18), "white")
    draw = ImageDraw.Draw(sheet)
    gaps = [0, 0, 8, 16, 16, 24, 24]
    for column, title in enumerate(
        ("training images", "", "initializer", "learned word", "", "in other prompts", "")
    ):
        draw.text((label + column * SIZE * SCALE + gaps[column], 3), title, "black")
    for number, row in enumerate(rows):
        top = 18 + number * SIZE * SCALE
        draw.text((4, top + SIZE), f"<{row['concept_id']}>", "black")
        folder = output / "concepts" / row["concept_id"]
        for column, picture in enumerate(row_of_pictures(backbone, row, folder, config, source.base)):
            tile = Image.fromarray(picture).resize((SIZE * SCALE, SIZE * SCALE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (label + column * SIZE * SCALE + gaps[column], top))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main()
