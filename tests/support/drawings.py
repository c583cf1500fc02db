"""A few drawings without pictures, as `training.build` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.build import row_of
from training.world import TRAINING_STYLES, draw_identity, draw_view


def write(folder: Path, styles: Sequence[str] = TRAINING_STYLES, views: int = 1) -> Path:
    """One identity of each style in so many views, the first with a name; the pictures are noise. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    identities = [draw_identity(style, rng) for style in styles]
    rows = [
        row_of(identity, i, "zorak" if i == 0 else None, draw_view(identity, rng))
        for i, identity in enumerate(identities)
        for _ in range(views)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(folder / "images.npy", rng.integers(0, 256, (len(rows), 64, 64, 3), np.uint8))
    return folder
