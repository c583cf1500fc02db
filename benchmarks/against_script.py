"""The public script against our job: same concepts, same model, same scorer, in one run.

    python benchmarks/against_script.py --script textual_inversion.py [--manifest PATH] [--seeds 3] [--json PATH]
                                        [--keep FOLDER] [-- OPTIONS OF THE SCRIPT]

The script is examples/textual_inversion/textual_inversion.py of huggingface/diffusers, at the tag of the installed
diffusers (or the newest before it); it is run once per concept, with the settings of its README. Our job learns all
concepts at once, several times, evenly between the script's runs, so that a machine's moods meet both. Both words of
each concept are then scored with the same prompts and noise. Full runs of the script take long: --script-steps for
a trial, and with --keep the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from benchmarks import job, measure
from benchmarks.public_script import BATCH_SIZE, STEPS, PublicScript, write_images
from benchmarks.public_script import Run as ScriptRun
from textinv_ray.concept import Concept
from textinv_ray.config import JobConfig
from textinv_ray.inversion.backbone import Backbone
from textinv_ray.inversion.review import Subject, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.service import models

SCORES = {"clip_image_similarity": "CLIP image similarity", "clip_text_similarity": "CLIP text similarity"}

R = TypeVar("R", ScriptRun, job.Run)


def with_seeds(concepts: list[Concept], seeds: int) -> list[Concept]:
    """Each concept once per seed, under names of their own."""
    return [
        dataclasses.replace(concept, concept_id=f"{concept.concept_id}-seed{seed}", seed=seed)
        for concept in concepts
        for seed in range(seeds)
    ]


def manifest_of(concepts: list[Concept], folder: Path) -> Path:
    """What our job reads: the pixels that the script gets, and the same initial word and seed."""
    rows = [
        {
            "concept_id": concept.concept_id,
            "images": write_images(concept, folder / "images" / concept.concept_id),
            "initializer_token": concept.initializer_token,
            "learnable_property": concept.learnable_property,
            "seed": concept.seed,
        }
        for concept in concepts
    ]
    return job.write_manifest(folder, rows)


def once(folder: Path, kind: type[R], run: Callable[[Path], R]) -> R:
    """Runs in `folder`, or takes what was written there when the same command ran before and was stopped."""
    path = folder / "run.json"
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)  # half of a run would spare the next one some of its time
        folder.mkdir(parents=True)
        path.write_text(json.dumps(dataclasses.asdict(run(folder))))
    return kind(**json.loads(path.read_text()))


def run_both(
    script: PublicScript, concepts: list[Concept], options: argparse.Namespace, model: str, folder: Path
) -> tuple[dict[str, ScriptRun], list[job.Run]]:
    """The script for each concept, and our job `repeats` times: first, and evenly between."""
    manifest, theirs, ours = manifest_of(concepts, folder), {}, []
    pause = -(-len(concepts) // max(1, options.repeats - 1))

    def our_job(place: Path) -> job.Run:
        return job.run(manifest, place / "output", options.config, options.set)

    def run_ours() -> None:
        ours.append(once(folder / f"ours-{len(ours)}", job.Run, our_job))
        print(f"our job: {ours[-1].seconds:.0f} s for {len(concepts)} concepts", flush=True)

    for number, concept in enumerate(concepts):
        if number % pause == 0:
            run_ours()

        def learn(place: Path, concept: Concept = concept) -> ScriptRun:
            return script.run(concept, model, place)

        theirs[concept.concept_id] = once(folder / "script" / concept.concept_id, ScriptRun, learn)
        print(f"the script: {theirs[concept.concept_id].seconds:.0f} s for {concept.concept_id}", flush=True)
    while len(ours) < options.repeats:
        run_ours()
    return theirs, ours


def keep(folder: Path, options: argparse.Namespace) -> Path:
    """The folder for runs, made unless it is there. Raises SystemExit when its runs are of another command."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        name: value for name, value in vars(options).items() if name not in ("json", "keep", "images")
    }
    command, path = json.dumps(settings, default=str, indent=1), folder / "command.json"
    if path.exists() and path.read_text() != command:
        raise SystemExit(f"{folder} has runs of other settings ({path}): give another --keep")
    path.write_text(command)
    return folder.resolve()


def scores(
    concepts: list[Concept], words: dict[str, dict[str, Tensor | None]], config: JobConfig, model: str
) -> dict[str, dict[str, dict[str, float]]]:
    """By side, concept (seeds averaged) and score: the same prompts and noise for all sides."""
    backbone = Backbone.load(model, dtype=config.model.dtype)
    scorer = Scorer.load(models.resolve(config.scoring.model))
    pictures: dict[Any, Any] = {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for side, vectors in words.items():
        subjects = [Subject(concept, vectors[concept.concept_id]) for concept in concepts]
        by_name: dict[str, list[Any]] = {}
        for concept, one in zip(concepts, review(backbone, scorer, subjects, config, pictures), strict=True):
            by_name.setdefault(concept.concept_id.rpartition("-seed")[0], []).append(one)
        found[side] = {
            name: {score: statistics.mean(getattr(one, score) for one in all_seeds) for score in SCORES}
            for name, all_seeds in by_name.items()
        }
    return found


def rows_of(
    theirs: list[ScriptRun],
    ours: list[job.Run],
    batch_size: int,
    quality: dict[str, dict[str, dict[str, float]]],
) -> list[dict[str, Any]]:
    """The table: the script's figures, ours, and their ratio or difference."""

    def row(name: str, script: float, own: float) -> dict[str, Any]:
        return {"": name, "script": script, "ours": own, "ours / script": own / script}

    seconds = [
        statistics.median(run.seconds for run in theirs),
        statistics.median(run.seconds / run.concepts for run in ours),
    ]
    steps = [statistics.median(run.steps_per_second for run in side) for side in (theirs, ours)]
    samples = [steps[0] * BATCH_SIZE, steps[1] * batch_size]
    memory = [max(run.memory_bytes for run in side) / measure.MEGABYTE for side in (theirs, ours)]
    device = [max(run.device_bytes for run in side) / measure.MEGABYTE for side in (theirs, ours)]
    rows = [
        row("steps per concept", theirs[0].steps, ours[0].steps / ours[0].concepts),
        row("seconds per concept", *seconds),
        row("concepts per hour", *(3600 / value for value in seconds)),
        row("steps per second", *steps),
        row("samples per second", *samples),
        row("peak memory, MB", *memory),
    ]
    if min(device):
        rows.append(row("peak memory of the device, MB", *device))
    for score, name in SCORES.items():
        by_side = {side: [one[score] for one in found.values()] for side, found in quality.items()}
        gained = [b - a for a, b in zip(by_side["script"], by_side["ours"], strict=True)]
        shown = {side: measure.with_error(by_side[side]) for side in ("script", "ours")}
        rows.append({"": name, **shown, "ours / script": measure.with_error(gained, "+")})
        rows.append({"": "  of the initializer", "script": measure.with_error(by_side["initializer"])})
        rows[-1] |= {"ours": rows[-1]["script"], "ours / script": None}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--manifest", default=str(job.EXAMPLES))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="words learned for each concept")
    parser.add_argument("--config", default="mini", help="our job's")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--script-steps", type=int, default=STEPS)
    parser.add_argument("--repeats", type=int, default=3, help="runs of our job")
    parser.add_argument("--images", type=int, default=8, help="samples per prompt to score")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where runs stay, and are not run again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("script_options", nargs="*", help="after --: more options for the script")
    options = parser.parse_args()

    config = JobConfig.load(options.config, options.set)
    script = PublicScript(options.script, options.script_steps, options.script_options)
    concepts = with_seeds(job.concepts_of(options.manifest, config, options.limit), options.seeds)
    model = models.resolve(config.model.path)
    print(f"{len(concepts)} words on {measure.machine_line()}", flush=True)
    kept = nullcontext(keep(options.keep, options)) if options.keep else tempfile.TemporaryDirectory()
    with kept as folder:
        theirs, ours = run_both(script, concepts, options, model, Path(folder))
        words = {
            "initializer": dict.fromkeys(theirs),
            "script": {name: run.vectors for name, run in theirs.items()},
            "ours": job.words(ours[-1]),
        }
    quality = scores(concepts, words, config.override([f"scoring.num_images={options.images}"]), model)
    runs = list(theirs.values())
    rows = rows_of(runs, ours, config.training.batch_size, quality)
    print(measure.table(rows))
    print(
        "(medians of all runs; scores: mean ± standard error over concepts; last column: of their paired differences)"
    )
    if options.script_steps != STEPS:
        full = statistics.median(run.seconds + (STEPS - run.steps) / run.steps_per_second for run in runs)
        print(
            f"A TRIAL: {options.script_steps} of the script's {STEPS} steps, so its time and its scores are not"
        )
        print(f"those of its recommended settings; at this speed {STEPS} steps take {full:,.0f} s a concept")
    measure.write_json(
        options.json,
        {
            "script_steps": options.script_steps,
            "script_options": options.script_options,
            "stand_in_for_torchvision": script.uses_stand_in,
            "config": options.config,
            "settings": options.set,
            "seeds": options.seeds,
            "table": rows,
            "script": [dataclasses.asdict(run) for run in runs],
            "ours": [dataclasses.asdict(run) for run in ours],
            "scores": quality,
        },
    )


if __name__ == "__main__":
    main()
