"""diffusers' examples/textual_inversion/textual_inversion.py, run as its README says: for against_script.py."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks.measure import PeakMemory
from textinv_ray.concepts.concept import Concept

STEPS = 3000
BATCH_SIZE = 4
"""Samples of a step: 1 at a time, gradients accumulated over 4."""
OPTIONS = (
    "--train_batch_size=1",
    f"--gradient_accumulation_steps={BATCH_SIZE}",
    "--learning_rate=5.0e-04",
    "--scale_lr",
    "--lr_scheduler=constant",
    "--lr_warmup_steps=0",
)
"""What its README recommends, besides the number of steps and the resolution of the model."""
_WITHOUT_TORCHVISION = Path(__file__).with_name("without_torchvision.py")
_URL = "https://raw.githubusercontent.com/huggingface/diffusers/{}/examples/textual_inversion/textual_inversion.py"


@dataclass(frozen=True)
class Run:
    """What one run of the script, for one concept, took."""

    steps: int
    seconds: float
    """From command to prompt."""
    learning_seconds: float
    """From the end of its first step to the end of its last one."""
    memory_bytes: int
    device_bytes: int

    @property
    def steps_per_second(self) -> float:
        return (self.steps - 1) / self.learning_seconds


@dataclass
class Progress:
    """Reads when steps were taken from what tqdm writes: "Steps:  40%|####  | 40/100 [00:10<00:15, ...]"."""

    steps: int
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None
    text: str = field(default="", repr=False)

    def read(self, text: str, at: float) -> None:
        self.text = (self.text + text)[-20_000:]
        found = re.findall(rf"Steps: .*?\b(\d+)/{self.steps} \[", text)
        if found and int(found[-1]) > 0:
            self.last = int(found[-1]), at
            self.first = self.first or self.last

    @property
    def learning_seconds(self) -> float:
        """From the end of step 1 to the last step's, as the speed between the first and last sighting tells."""
        if not self.first or not self.last or self.last[0] <= self.first[0]:
            return float("nan")
        per_step = (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])
        return per_step * (self.steps - 1)


class PublicScript:
    """A user's copy of the script."""

    def __init__(self, path: Path, steps: int, more_options: Sequence[str] = (), at_once: int = 1) -> None:
        """`at_once`: runs that share the machine's cores.

        Raises SystemExit, saying what to do, when it doesn't run with the packages that are installed.
        """
        if not path.is_file():
            raise SystemExit(f"{path} doesn't exist: fetch the script from {_URL.format('<a release tag>')}")
        self.path, self.steps, self.more_options = path, steps, tuple(more_options)
        threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.uses_stand_in = importlib.util.find_spec("torchvision") is None
        self._command = [sys.executable, str(path)]
        if self.uses_stand_in:
            print(
                "torchvision isn't installed: its RandomHorizontalFlip, all that the script takes from it, is"
            )
            print(
                "replaced by one that does the same; for the real one `pip install torchvision`, for your torch"
            )
            self._command.insert(1, str(_WITHOUT_TORCHVISION))
        error = self._try()
        if error:
            raise SystemExit(f"{path} doesn't start: {error}\n{_advice(error)}")

    def _try(self) -> str:
        """What is wrong with its imports and its check of versions; empty if nothing."""
        tried = subprocess.run([*self._command, "--help"], capture_output=True, text=True)
        if not tried.returncode:
            return ""
        *_, error = re.split(r"\n(?=\w+(?:Error|Exit)\b)", "\n" + tried.stderr.strip())
        return error.strip() or "no reason given"

    def name_of(self, concept: Concept, model_identity: str) -> str:
        """A file name for a concept's word: another one wherever script, settings, images or model are others."""
        settings = [*OPTIONS, self.steps, *self.more_options, model_identity, concept.seed]
        settings += [concept.initializer_token, concept.learnable_property, *concept.images.shape]
        digest = hashlib.sha256(self.path.read_bytes())
        digest.update(json.dumps(settings).encode() + concept.images.tobytes())
        return f"{concept.concept_id}-{digest.hexdigest()[:12]}.safetensors"

    def run(self, concept: Concept, model: str, word: Path) -> Run:
        """Learns one concept from its prepared images; its learned_embeds.safetensors becomes `word`.

        Raises SystemExit, with what the script said, when it fails.
        """
        word.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            images, output = Path(folder) / "images", Path(folder) / "output"
            write_images(concept, images)
            command = [
                *(*self._command, *OPTIONS, f"--max_train_steps={self.steps}"),
                f"--pretrained_model_name_or_path={model}",
                f"--train_data_dir={images}",
                f"--learnable_property={concept.learnable_property}",
                f"--placeholder_token={concept.placeholder_token}",
                f"--initializer_token={concept.initializer_token}",
                f"--resolution={concept.images.shape[2]}",
                f"--seed={concept.seed % 2**32}",
                f"--output_dir={output}",
                *self.more_options,
            ]
            found = self._measured(command)
            shutil.copy(output / "learned_embeds.safetensors", partial := word.with_suffix(".partial"))
            partial.rename(word)
        return found

    def _measured(self, command: list[str]) -> Run:
        progress, began = Progress(self.steps), time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=self._environment
        )
        assert process.stderr is not None
        with process.stderr, PeakMemory(process.pid) as memory:
            while text := os.read(process.stderr.fileno(), 65536):
                progress.read(text.decode(errors="replace"), time.perf_counter())
            code = process.wait()
        seconds = time.perf_counter() - began
        if code:
            raise SystemExit(f"{self.path} ended with exit code {code}:\n{progress.text[-3000:]}")
        return Run(self.steps, seconds, progress.learning_seconds, memory.bytes, memory.device_bytes)


def write_images(concept: Concept, folder: Path) -> list[str]:
    """A concept's prepared images as PNG files: the same pixels for both sides. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(concept.images[:, 0]):
        paths.append(str(folder / f"{number:02d}.png"))
        Image.fromarray(image).save(paths[-1])
    return paths


def _advice(error: str) -> str:
    if "but the version found is" in error:  # as check_min_version of diffusers says it
        import diffusers

        tag = f"v{diffusers.__version__}"
        return (
            f"Take the script of the installed release instead (or of the newest one before {tag}):\n"
            f"{_URL.format(tag)}"
        )
    return "Install what it asks for beside this project: pip install -r requirements.txt, of the script's folder"
