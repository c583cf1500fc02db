"""The public script against our job: same concepts, same model, same scorer, in one run.

    python benchmarks/against_script.py --script textual_inversion.py [--manifest PATH] [--seeds 3] [--holdout 2]
                                        [--words FOLDER] [--predictor FILE] [--json PATH] [-- OPTIONS OF THE SCRIPT]

The script is examples/textual_inversion/textual_inversion.py of huggingface/diffusers, at the tag of the installed
diffusers (or the newest before it); it is run once per concept, with the settings of its README. Our job learns all
concepts at once, several times, evenly between the script's timed runs, so that a machine's moods meet both; with
--predictor another one, which learns from predicted words in few steps, too. All words of each concept are then scored
with the same prompts and noise, with --holdout on images that no side saw. Full runs of the script take long:
--script-steps for a trial, and with --words no word is learned again that was learned before.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from benchmarks import job, measure
from benchmarks.public_script import BATCH_SIZE, STEPS, PublicScript, write_images
from benchmarks.public_script import Run as ScriptRun
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.word_files import Word, read_words
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.review import Subject, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.words import rows_of as rows_of_word
from textinv_ray.service.models import sources

SCORES = {"clip_image_similarity": "CLIP image similarity", "clip_text_similarity": "CLIP text similarity"}


def with_seeds(concepts: list[Concept], seeds: int) -> list[Concept]:
    """Each concept `seeds` times, under names and with seeds of their own: no two words share their chance."""
    return [
        dataclasses.replace(concept, concept_id=f"{concept.concept_id}-seed{seed}", seed=seed)
        for number, concept in enumerate(concepts)
        for seed in range(number * seeds, (number + 1) * seeds)
    ]


@dataclasses.dataclass(frozen=True)
class OurJob:
    """A job of ours, and its runs."""

    name: str
    manifest: Path
    settings: tuple[str, ...]
    runs: list[job.Run] = dataclasses.field(default_factory=list)


def manifest_of(concepts: list[Concept], folder: Path, predictor: Path | None = None) -> Path:
    """What our job reads: the pixels that the script gets, the same seed, and the same initial word or a predictor."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "concept_id": concept.concept_id,
            "images": write_images(concept, folder / "images" / concept.concept_id),
            "learnable_property": concept.learnable_property,
            "seed": concept.seed,
        }
        | ({"init_from": str(predictor)} if predictor else {"initializer_token": concept.initializer_token})
        for concept in concepts
    ]
    return job.write_manifest(folder, rows)


def our_jobs(concepts: list[Concept], options: argparse.Namespace, folder: Path) -> list[OurJob]:
    """The preset's, and with --predictor the one that learns from predictions."""
    jobs = [OurJob("ours", manifest_of(concepts, folder), tuple(options.set))]
    if options.predictor:
        manifest = manifest_of(concepts, folder / "predicted", options.predictor.resolve())
        steps = (f"training.steps={options.predicted_steps}", "stopping.rule=none")
        jobs.append(OurJob("predicted", manifest, (*options.set, *steps)))
    return jobs


def learn(
    script: PublicScript,
    concepts: list[Concept],
    options: argparse.Namespace,
    config: JobConfig,
    folder: Path,
) -> tuple[dict[str, Path], dict[str, ScriptRun], list[OurJob]]:
    """The script's words, those of its runs that are timed, and our jobs' runs.

    First the script's words that are neither timed nor in `options.words`, then our jobs, half of the timed ones, our
    jobs, the other half, our jobs: so for three repeats.
    """
    facts, model = sources.facts(config.model), sources.resolve(config.model.path)
    jobs, shelf = our_jobs(concepts, options, folder), options.words or folder
    others, timed = concepts[: -options.timed], concepts[-options.timed :]
    words = {one.concept_id: shelf / script.name_of(one, facts.identity) for one in others}
    words |= {one.concept_id: folder / script.name_of(one, facts.identity) for one in timed}
    theirs: dict[str, ScriptRun] = {}

    def run_script(concept: Concept) -> None:
        found = script.run(concept, model, words[concept.concept_id])
        theirs[concept.concept_id] = found
        print(f"the script: {found.seconds:.0f} s for {concept.concept_id}", flush=True)

    def run_ours() -> None:
        for one in jobs:
            output = folder / f"{one.name}-{len(one.runs)}"
            one.runs.append(job.run(one.manifest, output, options.config, one.settings))
            print(f"{one.name}: {one.runs[-1].seconds:.0f} s for {len(concepts)} concepts", flush=True)

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(run_script, [one for one in others if not words[one.concept_id].exists()]))
        part = max(1, -(-len(timed) // max(1, options.repeats - 1)))
        for start in range(0, len(timed), part):
            if len(jobs[0].runs) < options.repeats:
                run_ours()
            list(pool.map(run_script, timed[start : start + part]))
    while len(jobs[0].runs) < options.repeats:
        run_ours()
    return words, {one.concept_id: theirs[one.concept_id] for one in timed}, jobs


def scores(
    concepts: list[Concept], words: dict[str, dict[str, Word | None]], config: JobConfig
) -> dict[str, dict[str, dict[str, float]]]:
    """By side, concept (seeds averaged) and score: the same prompts and noise for all sides."""
    backbone = load_backbone(sources.resolve(config.model.path), dtype=config.model.dtype)
    scorer = Scorer.load(sources.resolve(config.scoring.model))
    pictures: dict[Any, Any] = {}
    found: dict[str, dict[str, dict[str, float]]] = {}

    def rows(word: Word | None) -> Tensor | None:
        return None if word is None else rows_of_word(backbone, word)

    for side, learned in words.items():
        subjects = [Subject(concept, rows(learned[concept.concept_id])) for concept in concepts]
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
    at_once: int,
    jobs: list[OurJob],
    batch_size: int,
    quality: dict[str, dict[str, dict[str, float]]],
) -> list[dict[str, Any]]:
    """The table: the script's figures, those of our jobs, and each one's ratio or difference to the script's.

    `theirs`: the runs that were timed.
    """

    def row(name: str, script: float, own: list[float]) -> dict[str, Any]:
        shown: dict[str, Any] = {"": name, "script": script}
        for one, value in zip(jobs, own, strict=True):
            shown |= {one.name: value, f"{one.name} / script": value / script}
        return shown

    def most(runs: list[Any], field: str) -> float:
        return max(getattr(run, field) for run in runs) / measure.MEGABYTE

    runs = [one.runs for one in jobs]
    seconds = statistics.median(run.seconds for run in theirs) / at_once
    own_seconds = [statistics.median(run.seconds / run.concepts for run in own) for own in runs]
    speed = at_once * statistics.median(run.steps_per_second for run in theirs)
    own_speed = [statistics.median(run.steps_per_second for run in own) for own in runs]
    rows = [
        row("steps per concept", theirs[0].steps, [own[0].steps / own[0].concepts for own in runs]),
        row("seconds per concept", seconds, own_seconds),
        row("concepts per hour", 3600 / seconds, [3600 / value for value in own_seconds]),
        row("steps per second", speed, own_speed),
        row("samples per second", speed * BATCH_SIZE, [value * batch_size for value in own_speed]),
        row(
            "peak memory, MB",
            at_once * most(theirs, "memory_bytes"),
            [most(own, "memory_bytes") for own in runs],
        ),
    ]
    device = at_once * most(theirs, "device_bytes")
    if device:
        rows.append(row("peak memory of the device, MB", device, [most(own, "device_bytes") for own in runs]))
    for score, name in SCORES.items():
        by_side = {side: [one[score] for one in found.values()] for side, found in quality.items()}
        shown: dict[str, Any] = {"": name, "script": measure.with_error(by_side["script"])}
        of_initializer: dict[str, Any] = {
            "": "  of the initializer",
            "script": measure.with_error(by_side["initializer"]),
        }
        for one in jobs:
            gained = [b - a for a, b in zip(by_side["script"], by_side[one.name], strict=True)]
            shown |= {one.name: measure.with_error(by_side[one.name])}
            shown |= {f"{one.name} / script": measure.with_error(gained, "+")}
            of_initializer |= {one.name: of_initializer["script"], f"{one.name} / script": None}
        rows += [shown, of_initializer]
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
    parser.add_argument(
        "--holdout", type=int, default=0, help="images of each concept that no side learns from, to score by"
    )
    parser.add_argument(
        "--predictor", type=Path, help="of `textinv predictor fit`: our job from its words, too"
    )
    parser.add_argument("--predicted-steps", type=int, default=25, help="that job's")
    parser.add_argument("--script-steps", type=int, default=STEPS)
    parser.add_argument(
        "--at-once", type=int, default=1, help="runs of the script side by side, which share the cores"
    )
    parser.add_argument(
        "--timed", type=int, default=4, help="runs of the script that time is taken from: the last"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of our job")
    parser.add_argument("--images", type=int, default=8, help="samples per prompt to score")
    parser.add_argument(
        "--words",
        type=Path,
        metavar="FOLDER",
        help="where words of the script stay, and aren't learned again",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("script_options", nargs="*", help="after --: more options for the script")
    options = parser.parse_args()

    config = JobConfig.load(options.config, options.set)
    script = PublicScript(options.script, options.script_steps, options.script_options, options.at_once)
    held_out = config.override([f"data.holdout={options.holdout}"])
    concepts = with_seeds(job.concepts_of(options.manifest, held_out, options.limit), options.seeds)
    print(f"{len(concepts)} words on {measure.machine_line()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files, theirs, jobs = learn(script, concepts, options, config, Path(folder))
        words: dict[str, dict[str, Word | None]] = {
            "initializer": dict.fromkeys(files),
            "script": {name: next(iter(read_words(path).values())) for name, path in files.items()},
            **{one.name: job.words(one.runs[-1]) for one in jobs},
        }
    quality = scores(concepts, words, config.override([f"scoring.num_images={options.images}"]))
    runs = list(theirs.values())
    rows = rows_of(runs, options.at_once, jobs, config.training.batch_size, quality)
    print(measure.table(rows))
    print(
        "(medians of the timed runs; scores: mean ± standard error over concepts, last of their paired differences)"
    )
    if options.script_steps != STEPS:
        full = statistics.median(run.seconds + (STEPS - run.steps) / run.steps_per_second for run in runs)
        full /= options.at_once
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
            "holdout": options.holdout,
            "seeds": options.seeds,
            "at_once": options.at_once,
            "table": rows,
            "script": {name: dataclasses.asdict(run) for name, run in theirs.items()},
            **{one.name: [dataclasses.asdict(run) for run in one.runs] for one in jobs},
            "scores": quality,
        },
    )


if __name__ == "__main__":
    main()
