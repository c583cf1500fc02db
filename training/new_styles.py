"""Compare settings by drawing styles that no training, no preset and no figure of the cards has.

    python -m training.new_styles [--config mini] [--seeds 3] --option "training.style={}" --option ...

Each option is one or more settings, separated by spaces, beside the preset with 200 steps and no stopping rule. Of
each of STYLES 25 characters are drawn by DiceBear's own dice (needs Node.js, and the drawings of `training.build`); a
word is learned from five, and its pictures of new characters are compared with the other twenty. Pictures go to
build/mini/new-styles, a sheet for each option.
"""

from __future__ import annotations

import argparse
import shlex

import numpy as np

from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.scoring import Scorer
from training.build import render, svgs
from training.common import BUILD, MODELS
from training.evaluate import TRAINING_VIEWS, StyleImages, measure_styles
from training.world import COLOURS, jittered

STYLES = ("lorelei", "croodles", "thumbs", "bottts", "avataaars")
CHARACTERS = 25
SEED = 11
PER_PROMPT = 2
"""Pictures of each prompt: more seeds of the words say more than more pictures of one."""


def draw(style: str, rng: np.random.Generator) -> np.ndarray:
    """uint8 (CHARACTERS, H, W, 3): a view of each, on a background of the colours that training has."""
    views = [
        {
            "seed": f"character {number}",
            "backgroundColor": [jittered(str(rng.choice(list(COLOURS.values()))), rng)],
            "flip": bool(rng.random() < 0.5),
            "scale": int(rng.integers(80, 109)),
            "rotate": int(rng.integers(-8, 9)) % 360,
        }
        for number in range(CHARACTERS)
    ]
    return np.stack([render(svg) for svg in svgs({"style": style, "options": view} for view in views)])


def drawn_styles() -> dict[str, StyleImages]:
    rng = np.random.default_rng(SEED)
    drawn = {style: draw(style, rng) for style in STYLES}
    return {style: (images[:TRAINING_VIEWS], images[TRAINING_VIEWS:]) for style, images in drawn.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--option", action="append", default=[], help='settings, such as "training.steps=100"'
    )
    parser.add_argument("--config", choices=("mini", "mini-sdxl"), default="mini")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    configs = {
        option: JobConfig.load(
            options.config, ["stopping.rule=none", "training.steps=200", *shlex.split(option)]
        )
        for option in ("", *options.option)
    }
    styles, backbone = drawn_styles(), load_backbone(str(MODELS / configs[""].model.path))
    scorer = Scorer.load(str(MODELS / "mini-clip"))
    for number, (option, config) in enumerate(configs.items()):
        folder = BUILD / "new-styles" / f"{options.config}-{number}"
        found = measure_styles(backbone, scorer, styles, config, folder, options.seeds, PER_PROMPT)
        shares, similarities = found["style_share"], found["style_similarity"]
        print(
            f"{option or 'the preset'}: {np.mean(list(shares.values())):.1%} nearest to their style", shares
        )
        print(f"  similarity {np.mean(list(similarities.values())):.3f}", similarities, flush=True)


if __name__ == "__main__":
    main()
