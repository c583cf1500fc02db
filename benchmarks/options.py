"""What single settings of training change: each beside the preset, for the same concepts, seeds and steps.

    python benchmarks/options.py OUTPUT --option "training.loss_weight=min_snr" --option "training.noise_offset=0.1"
                                 [--manifest PATH] [--limit N] [--seeds 3] [--steps 100] [--images 4] [--config mini]
                                 [--set SECTION.FIELD=VALUE ...] [--json PATH]

An option is one or more settings, separated by spaces. Every word takes all steps; concepts and draws are those of the
preset, so that differences are paired. Scores by the scoring model and by the judge. OUTPUT is a folder with
scores.jsonl; what is in it is not learned again. One process, no Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import job, measure
from benchmarks.against_script import with_seeds
from benchmarks.quality_vs_steps import learn
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation_table
from textinv_ray.experiments.ablation_table import Score
from textinv_ray.experiments.interpolated import Models
from textinv_ray.inversion.review import Subject, review

BASE = "base"


def scores_of(name: str, config: JobConfig, options: argparse.Namespace, models: Models) -> list[Score]:
    """Learns all concepts with one configuration, and scores them."""
    concepts = with_seeds(job.concepts_of(options.manifest, config, options.limit), options.seeds)
    concepts = [dataclasses.replace(concept, steps=options.steps, prompts=()) for concept in concepts]
    words = learn(models.backbone, models.scorer, concepts, config, {options.steps})
    subjects = [Subject(word.concept, word.vectors) for word in words]
    found = []
    for word, made in zip(
        words,
        review(models.backbone, models.scorer, subjects, config, judge=models.judge),
        strict=True,
    ):
        concept, _, seed = word.concept.concept_id.rpartition("-seed")
        image, text = made.clip_image_similarity, made.clip_text_similarity
        assert image is not None
        assert text is not None
        found.append(
            Score("variant", name, concept, seed, image, text, word.seconds, judge=made.judge_similarity)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--option", action="append", default=[], metavar="'SECTION.FIELD=VALUE ...'")
    parser.add_argument("--manifest", default=str(Path(__file__).with_name("heldout.parquet")))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=3, help="words learned for each concept")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=4, help="samples per prompt to score")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    fixed = [
        "stopping.rule=none",
        f"training.steps={options.steps}",
        f"scoring.num_images={options.images}",
    ]
    plain = JobConfig.load(options.config, [*options.set, *fixed])
    options.output.mkdir(parents=True, exist_ok=True)
    notes = options.output / "scores.jsonl"
    lines = notes.read_text().splitlines() if notes.exists() else []
    known = [Score(**json.loads(line)) for line in lines]
    models = Models.load(plain)
    for name in (BASE, *options.option):
        if any(score.name == name for score in known):
            continue
        config = plain.override(shlex.split(name)) if name != BASE else plain
        made = scores_of(name, config, options, models)
        with notes.open("a") as file:
            file.writelines(json.dumps(dataclasses.asdict(score)) + "\n" for score in made)
        known += made
        print(f"{name}: {len(made)} words", flush=True)
    shown = [score for name in (BASE, *options.option) for score in known if score.name == name]
    table = ablation_table.table(shown, BASE)
    print(ablation_table.text(table, BASE))
    rows = table.to_pylist()
    print("seconds per word: " + ", ".join(f"{row['name']} {row['seconds']:.1f}" for row in rows))
    measure.write_json(options.json, {**vars(options), "rows": rows})


if __name__ == "__main__":
    main()
