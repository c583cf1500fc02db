"""Compare recipes of the UNet: runs of equal time, measured alike.

    python -m training.recipes [--minutes 20] [--at-once 1] [--only NAME,...] [--out build/mini/recipes] [--json PATH]

Some runs go on from the shipped weights, which shows what more training with that recipe would give. The others begin
with a UNet of random weights (the text encoder is the shipped one): these show how fast a recipe learns. Each has a
process and `--minutes` for itself; finished ones are not run again. Measured on characters that no training saw: the
loss that `training.unet` records, weighted alike for all, pictures drawn from 100 captions, by mini-clip and by
mini-judge, and words that are learned on it, as `training.evaluate` does. The bundled model stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.encoder_loading import load_encoder
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.scoring import Scorer
from training import captions as characters
from training.common import BUILD, MODELS, save_grid
from training.evaluate import FIRST_SEED, Heldout, measure_inversion, measure_styles, top5

FRESH_EPSILON = ("--fresh", "--prediction", "epsilon")
GENTLE = ("--rate", "1e-4", "--average", "0.9995")
RECIPES: dict[str, tuple[str, ...]] = {
    "shipped": (),
    "average": ("--average", "0.9995"),
    "dropout": ("--dropped", "0.2"),
    "batch": ("--batch", "16"),
    "rate": ("--rate", "1e-3"),
    "gentle": (*GENTLE, "--composed", "0"),
    "gentle-batch": (*GENTLE, "--composed", "0", "--batch", "16"),
    "gentle-range": (*GENTLE, "--composed", "0", "--lowest", "0"),
    "gentle-sharp": (*GENTLE, "--composed", "0", "--lowest", "0.2", "--highest", "20"),
    "gentle-said": (*GENTLE, "--composed", "0", "--said", "0.9"),
    "composed": (*GENTLE, "--text", "0"),
    "composed-slow": ("--rate", "3e-5", "--average", "0.9995", "--text", "0"),
    "range": ("--lowest", "0"),
    "fresh": FRESH_EPSILON,
    "fresh-v": ("--fresh", "--prediction", "v"),
    "fresh-v-zero-snr": ("--fresh", "--prediction", "v-zero-snr"),
    "fresh-range": (*FRESH_EPSILON, "--lowest", "0"),
    "fresh-batch": (*FRESH_EPSILON, "--batch", "16"),
}
"""Name -> options of `training.unet`."""
FINISHED = "finished"
"""A file in the folder of a run that has ended."""
LEARNED, STEPS = 10, 100
"""Characters whose words are learned, beside those of the held-out styles, and steps of each."""
SHOWN = 24
"""Pictures of each run's sheet."""


def train(name: str, folder: Path, minutes: float) -> None:
    """Run a recipe to its end, unless it was. Raises CalledProcessError when it fails."""
    if (folder / FINISHED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "training.unet", "--trial", "--folder", str(folder), *RECIPES[name]]
    # Steps without end: the time ends it.
    command += ["--steps", "1000000", "--hours", str(minutes / 60)]
    print(f"{name}: {' '.join(command[1:])}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(folder / "output.txt", "w") as output:
        subprocess.run(command, check=True, env=environment, stdout=output, stderr=output)
    (folder / FINISHED).touch()


def measured(folder: Path, heldout: Heldout, scorer: Scorer, judge: Encoder) -> dict[str, Any]:
    """Of a finished run: its last point of the curve, and its pictures of each held-out character's first caption."""
    first, *_, last = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    views = [images[0] for images in heldout.characters.values()]
    captions = [characters.full_caption(heldout.data.rows[index]) for index in views]
    real = heldout.data.pixels(views)
    seeds = [FIRST_SEED + number for number in range(len(views))]
    config = JobConfig.load("mini", ["stopping.rule=none", f"training.steps={STEPS}"])
    backbone = load_backbone(str(folder / "mini-sd"))
    drawn = sample_images(backbone, {}, captions, seeds, config.review)
    words = measure_inversion(backbone, scorer, heldout, config, folder, LEARNED, 1)
    styles = measure_styles(backbone, scorer, heldout.style_images(), config, folder, 1)
    save_grid(folder / "captions.png", drawn[:: max(1, len(drawn) // SHOWN)], 12)
    own = {
        name: (encoder.image_features(drawn) * encoder.image_features(real)).sum(1)
        for name, encoder in (("clip", scorer), ("judge", judge))
    }
    return {
        "samples": last["samples"] - first["samples"],
        "loss at first": first["heldout"],
        "loss": last["heldout"],
        "loss, least to most noise": last["by_noise"],
        "clip": round(float(own["clip"].mean()), 3),
        "judge": round(float(own["judge"].mean()), 3),
        "nearest five": round(top5(scorer.text_features(captions), scorer.image_features(drawn)), 2),
        "word": words["mean"]["learned"],
        "closed": words["closed_distance"],
        "edits": [round(edit["learned"] / edit["initializer"], 2) for edit in words["edits"].values()],
        "styles": list(styles["style_share"].values()),
    }


def table(found: dict[str, dict[str, Any]]) -> Table:
    """A line for each recipe."""
    columns = list(next(iter(found.values())))
    shown = Table("recipe", "options", *columns, box=box.MARKDOWN)
    for name, figures in found.items():
        values = [" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in figures.values()]
        shown.add_row(name, " ".join(RECIPES[name]), *values)
    return shown


def some_recipes(text: str) -> list[str]:
    """Names of RECIPES, such as "fresh,fresh-v". Raises ArgumentTypeError for others."""
    found = text.split(",")
    if not set(found) <= set(RECIPES):
        raise argparse.ArgumentTypeError(f"{text!r}: name some of {', '.join(RECIPES)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="of each run")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, of one thread each")
    parser.add_argument("--only", type=some_recipes, default=list(RECIPES), metavar="NAME,NAME")
    parser.add_argument("--out", type=Path, default=BUILD / "recipes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    folders = {name: options.out / name for name in options.only}
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = [pool.submit(train, name, folder, options.minutes) for name, folder in folders.items()]
    for run in runs:
        run.result()
    heldout, scorer = Heldout(), Scorer.load(str(MODELS / "mini-clip"))
    judge = load_encoder(str(MODELS / "mini-judge"))
    found = {name: measured(folder, heldout, scorer, judge) for name, folder in folders.items()}
    Console(width=200).print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
