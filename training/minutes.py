"""Train the bundled models within minutes, on a machine that has a GPU and perhaps nothing else.

    python -m training.minutes draw drawings.xz [--no-sdxl]
    python -m training.minutes train --minutes 8 --out out
    python -m training.minutes sdxl --minutes 2 --out out

`python -m training.build --to drawings.xz` writes the drawings elsewhere; `draw` makes pixels of them. `train` goes on
from the bundled weights: the VAE first, beside it the two scorers, then UNet and text encoder. With `--parts
decoder,unet` latents and scorers stay as they are, so that figures before and after can be compared; the VAE's decoder
is trained beside the UNet. `sdxl` is a run of its own after that. In the end `out` holds the trained models, curves and
pictures, in a few files that are small enough to be sent (`cat model.tar.* | tar x` in the repository's root). On a CPU
it does the same with far fewer samples: so it is tried out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from training.build import folders_of, unpack
from training.common import BUILD, MODELS
from training.naming import NAMES_FILE

ROOT = MODELS.parent.parent
PART_BYTES = 15 * 2**20
RESERVE = 0.06
"""Share of the time that starting, encoding and packing may take beside what is measured."""
VAE_SHARE = 0.3
"""Of the time of `train`. The scorers are trained within it as well."""
DECODER_SHARE = 0.4
"""The same, of the decoder alone, beside the UNet."""
PARTS = ("vae", "scorers", "decoder", "unet")
PREDICTIONS = ("v", "epsilon", "v-zero-snr")
"""Of the UNet: those of `training.unet`, which needs packages that are installed later."""


def some_parts(text: str) -> list[str]:
    """Some of PARTS, such as "decoder,unet". Raises ArgumentTypeError for others."""
    found = text.split(",")
    if not set(found) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}: name some of {', '.join(PARTS)}")
    return found


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    print(f"== {module} {' '.join(arguments)}", flush=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment)


def finish(*stages: subprocess.Popen[bytes]) -> None:
    """Wait; raises CalledProcessError for the first that failed."""
    for stage in stages:
        if stage.wait():
            raise subprocess.CalledProcessError(stage.returncode, stage.args)


def hours(seconds: float) -> str:
    """For --hours: a second at least, so that a stage whose time is over ends by its first step."""
    return f"{max(1.0, seconds) / 3600:.5f}"


def pack_models(out: Path, names: Sequence[str]) -> int:
    """Write these models, curves and pictures as model.tar.00, .01, ... of at most PART_BYTES each; returns how many.

    Pictures and curves go to build/mini, where training writes them.
    """
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "model.tar"
    curves = [path for path in sorted(BUILD.glob("*/*")) if path.suffix in (".jsonl", ".png", ".txt")]
    kept = [path for path in curves if path.parent.name != "drawings"]
    with tarfile.open(whole, "w") as tar:
        for path in (*(MODELS / name for name in names), NAMES_FILE):
            tar.add(path, path.relative_to(ROOT))
        for path in kept:
            tar.add(path)
    content = whole.read_bytes()
    parts = [content[begin : begin + PART_BYTES] for begin in range(0, len(content), PART_BYTES)]
    for number, part in enumerate(parts):
        (out / f"model.tar.{number:02d}").write_bytes(part)
    whole.unlink()
    return len(parts)


def draw(drawings: Path, sdxl: bool) -> None:
    """`sdxl`: whether `train_sdxl` is to come."""
    unpack(drawings, folders_of(BUILD / "drawings"), redrawn=True)
    if sdxl:
        finish(start("training.pixels"))


def train(seconds: float, chosen: Sequence[str], prediction: str = PREDICTIONS[0]) -> list[str]:
    """Train these of PARTS; returns the models' names. prediction: what the UNet predicts, see `training.unet`."""
    end, share, beside = time.monotonic() + seconds, VAE_SHARE * seconds, []
    finish(start("training.tokenizer"))
    if "scorers" in chosen:
        beside += [
            start("training.clip", "--hours", hours(share)),
            start("training.judge", "--hours", hours(0.6 * share)),
        ]
    if "vae" in chosen:
        finish(start("training.vae", "--layers", "2", "--hours", hours(share)))
    else:
        finish(start("training.vae", "--encode"))
    if "decoder" in chosen:
        beside.append(start("training.vae", "--part", "decoder", "--hours", hours(DECODER_SHARE * seconds)))
    if "unet" in chosen:
        options = ("--average", "0.999", "--prediction", prediction)
        finish(start("training.unet", *options, "--hours", hours(end - time.monotonic())))
    finish(*beside)
    return ["mini-sd", *(("mini-clip", "mini-judge") if "scorers" in chosen else ())]


def train_sdxl(seconds: float) -> list[str]:
    end = time.monotonic() + seconds
    finish(start("training.sdxl", "--encode"))
    finish(start("training.sdxl", "--average", "0.999", "--hours", hours(end - time.monotonic())))
    return ["mini-sdxl"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("draw")
    command.add_argument("drawings", type=Path)
    command.add_argument(
        "--sdxl", action=argparse.BooleanOptionalAction, default=True, help="for mini-sdxl as well"
    )
    for name in ("train", "sdxl"):
        command = commands.add_parser(name)
        command.add_argument("--minutes", type=float, required=True, help="from start to end")
        command.add_argument("--out", type=Path, required=True)
        if name == "train":
            command.add_argument(
                "--parts", type=some_parts, default="vae,scorers,unet", help=f"of {', '.join(PARTS)}"
            )
            command.add_argument("--prediction", choices=PREDICTIONS, default=PREDICTIONS[0])
    options = parser.parse_args()
    if options.command == "draw":
        draw(options.drawings, options.sdxl)
        return
    seconds = 60 * options.minutes * (1 - RESERVE)
    names = (
        train(seconds, options.parts, options.prediction)
        if options.command == "train"
        else train_sdxl(seconds)
    )
    print(f"{options.out}: {', '.join(names)} in {pack_models(options.out, names)} files", flush=True)


if __name__ == "__main__":
    main()
