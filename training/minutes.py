"""Train the bundled model on within minutes, on a machine that has a GPU and perhaps nothing else.

    python -m training.minutes drawings.xz --minutes 9 --out out [--vae 0.3]

`python -m training.build --to drawings.xz` writes the drawings elsewhere. VAE, then UNet and text encoder go on from
the bundled weights; what is left of the time when the pixels are there is shared out between them. In the end `out`
holds the trained model in a few files that are small enough to be sent (`cat model.tar.* | tar x` in the repository's
root), the curve, and a grid of pictures. On a CPU it does the same with far fewer samples: so it is tried out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from training.build import unpack
from training.common import BUILD, MODELS
from training.model import NAMES_FILE

PART_BYTES = 15 * 2**20
RESERVE = 0.08
"""Share of the time that starting, encoding and packing may take beside what is measured."""


def stage(module: str, *arguments: str) -> None:
    print(f"== {module} {' '.join(arguments)}", flush=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, env=environment)


def hours(seconds: float) -> str:
    return f"{max(0.0, seconds) / 3600:.5f}"


def pack_model(out: Path) -> int:
    """Write mini-sd and the names as model.tar.00, .01, ... of at most PART_BYTES each; returns how many."""
    root, whole = MODELS.parent.parent, out / "model.tar"
    with tarfile.open(whole, "w") as tar:
        for path in (MODELS / "mini-sd", NAMES_FILE):
            tar.add(path, path.relative_to(root))
    content = whole.read_bytes()
    parts = [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]
    for number, part in enumerate(parts):
        (out / f"model.tar.{number:02d}").write_bytes(part)
    whole.unlink()
    return len(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("drawings", type=Path)
    parser.add_argument("--minutes", type=float, default=9, help="from start to end")
    parser.add_argument(
        "--vae", type=float, default=0.3, help="the VAE's share of the training; 0 leaves it as it is"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes * (1 - RESERVE)
    options.out.mkdir(parents=True, exist_ok=True)

    unpack(options.drawings, (BUILD / "drawings" / "heldout", BUILD / "drawings"))
    stage("training.tokenizer")
    left = end - time.monotonic()
    if options.vae:
        stage("training.vae", "--hours", hours(options.vae * left))
    else:
        stage("training.vae", "--encode")
    stage("training.unet", "--average", "0.999", "--hours", hours(end - time.monotonic()))
    for path in (BUILD / "unet" / "curve.jsonl", BUILD / "unet" / "log.jsonl", BUILD / "vae" / "log.jsonl"):
        if path.exists():
            shutil.copy(path, options.out / f"{path.parent.name}-{path.name}")
    shutil.copy(sorted((BUILD / "unet").glob("*.png"))[-1], options.out / "pictures.png")
    print(f"{options.out}: the model in {pack_model(options.out)} files", flush=True)


if __name__ == "__main__":
    main()
