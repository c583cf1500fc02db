"""What single settings of training change: each beside the preset, for the same concepts, seeds and steps.

    python benchmarks/options.py OUTPUT --option "training.loss_weight=min_snr" --option "training.noise_offset=0.1"
                                 [--predictor PATH] [--towards-initializer 0.15,0.3] [--manifest PATH] [--limit N]
                                 [--compare-with MANIFEST] [--seeds 3] [--steps 100] [--images 4]
                                 [--config mini] [--set SECTION.FIELD=VALUE ...]
                                 [--plot PATH] [--json PATH]

An option is one or more settings, separated by spaces. Every word takes all steps; concepts and draws are those of the
preset, so that differences are paired. Scores by the scoring model and by the judge. --predictor (of `textinv predictor
fit`): also the words that it predicts, with no step, with 10 and with all. --towards-initializer: also the preset's
words moved back by these shares. --compare-with: pictures are compared with the held-out images of its concepts of the
same ids (data.holdout), in place of those of --manifest. OUTPUT is a folder with scores.jsonl; what is in it, by its
name, is not learned again: take another folder for another comparison. One process, no Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import job, measure
from benchmarks.against_script import with_seeds
from benchmarks.quality_vs_steps import Word, learn, predicted_start
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.interpolation import between
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation_table, interpolated
from textinv_ray.experiments.ablation_table import Score
from textinv_ray.experiments.interpolated import Models
from textinv_ray.inversion import words
from textinv_ray.inversion.review import Subject, review
from textinv_ray.inversion.task import ConceptTask

Kind = Literal["variant", "between", "reference"]
KINDS: tuple[Kind, ...] = ("variant", "between", "reference")
BASE, INITIALIZER, TOWARDS = "base", "initializer", "towards the initializer"
PREDICTED_STEPS = (0, 10)
"""After which words of a predictor are judged, beside all steps."""


def with_steps(concepts: Sequence[Concept], steps: int) -> list[Concept]:
    """Made to be learned for so many steps, without pictures but those that are scored."""
    return [dataclasses.replace(concept, steps=steps, prompts=()) for concept in concepts]


def learned(concepts: Sequence[Concept], config: JobConfig, models: Models, steps: int) -> list[Word]:
    """The words after so many steps; 0: as they start."""
    if steps == 0:
        tasks = [ConceptTask(concept, models.backbone, config) for concept in concepts]
        return [Word(task.concept, task.vectors, 0, 0.0) for task in tasks]
    return learn(models.backbone, models.scorer, with_steps(concepts, steps), config, {steps})


def moved(found: Sequence[Word], share: float, config: JobConfig, models: Models) -> list[Word]:
    """The words, `share` of the way back to their initializers."""

    def stored(word: Word) -> dict[str, np.ndarray]:
        assert word.vectors is not None
        return {
            name: part.float().cpu().numpy() for name, part in models.backbone.split(word.vectors).items()
        }

    starts = learned([word.concept for word in found], config, models, 0)
    mixed = [
        between(stored(start), stored(word), 1 - share) for start, word in zip(starts, found, strict=True)
    ]
    return [
        dataclasses.replace(word, vectors=words.rows_of(models.backbone, vectors))
        for word, vectors in zip(found, mixed, strict=True)
    ]


def judged(kind: Kind, name: str, found: Sequence[Word], config: JobConfig, models: Models) -> list[Score]:
    """Scores of words; concepts are named as `with_seeds` does."""
    subjects = [Subject(word.concept, word.vectors) for word in found]
    scores = []
    reviews = review(models.backbone, models.scorer, subjects, config, judge=models.judge)
    for word, made in zip(found, reviews, strict=True):
        concept, _, seed = word.concept.concept_id.rpartition("-seed")
        image, text = made.clip_image_similarity, made.clip_text_similarity
        assert image is not None
        assert text is not None
        judge = made.judge_similarity
        scores.append(Score(kind, name, concept, seed, image, text, word.seconds, judge=judge))
    return scores


@dataclass
class Scores:
    """Scores by name, which stay in a file."""

    path: Path
    models: Models
    known: list[Score] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, models: Models) -> Scores:
        """With what the file has already, if there is one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        return cls(path, models, [Score(**json.loads(line)) for line in lines])

    def lack(self, name: str) -> bool:
        return all(score.name != name for score in self.known)

    def add(self, kind: Kind, name: str, found: Sequence[Word], config: JobConfig) -> None:
        made = judged(kind, name, found, config, self.models)
        with self.path.open("a") as file:
            file.writelines(json.dumps(dataclasses.asdict(score)) + "\n" for score in made)
        self.known += made
        print(f"{name}: {len(made)} words", flush=True)


def compare(scores: Scores, plain: JobConfig, options: argparse.Namespace) -> None:
    """Learns and judges what `scores` lack."""
    models, steps = scores.models, options.steps

    def concepts_of(config: JobConfig) -> list[Concept]:
        found = job.concepts_of(options.manifest, config, options.limit)
        if options.compare_with:
            if not config.data.holdout:
                raise SystemExit("--compare-with needs held-out images: --set data.holdout=2")
            others = {one.concept_id: one for one in job.concepts_of(options.compare_with, config)}
            if missing := [one.concept_id for one in found if one.concept_id not in others]:
                raise SystemExit(f"{options.compare_with} has no concept {', '.join(missing)}")
            found = [
                dataclasses.replace(one, heldout=others[one.concept_id].reference_images) for one in found
            ]
        return with_steps(with_seeds(found, options.seeds), steps)

    shares = {f"{share:g} {TOWARDS}": share for share in options.towards_initializer}
    if any(map(scores.lack, [BASE, INITIALIZER, *shares])):
        base = learned(concepts_of(plain), plain, models, steps)
        if scores.lack(INITIALIZER):
            starts = [dataclasses.replace(word, vectors=None, seconds=0.0) for word in base]
            scores.add("reference", INITIALIZER, starts, plain)
        if scores.lack(BASE):
            scores.add("variant", BASE, base, plain)
        for name in filter(scores.lack, shares):
            scores.add("between", name, moved(base, shares[name], plain, models), plain)
    for name in filter(scores.lack, options.option):
        config = plain.override(shlex.split(name))
        scores.add("variant", name, learned(concepts_of(config), config, models, steps), config)
    for few in (*PREDICTED_STEPS, steps) if options.predictor else ():
        if scores.lack(name := f"predicted, {few} steps"):
            concepts = [predicted_start(one, options.predictor, models.scorer) for one in concepts_of(plain)]
            scores.add("variant", name, learned(concepts, plain, models, few), plain)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--option", action="append", default=[], metavar="'SECTION.FIELD=VALUE ...'")
    parser.add_argument("--manifest", default=str(Path(__file__).with_name("heldout.parquet")))
    parser.add_argument("--compare-with", metavar="MANIFEST", help="whose images pictures are compared with")
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=3, help="words learned for each concept")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=4, help="samples per prompt to score")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--predictor", type=Path, metavar="PATH")
    parser.add_argument("--towards-initializer", type=interpolated.parse, default=[], metavar="SHARE,SHARE")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    fixed = [
        "stopping.rule=none",
        f"training.steps={options.steps}",
        f"scoring.num_images={options.images}",
    ]
    plain = JobConfig.load(options.config, [job.STYLES_AS_OBJECTS, *options.set, *fixed])
    print(f"{options.config} on {measure.machine_line()}", flush=True)
    scores = Scores.read(options.output / "scores.jsonl", Models.load(plain))
    compare(scores, plain, options)
    known = sorted(scores.known, key=lambda score: KINDS.index(score.kind))
    table = ablation_table.table(known, BASE)
    print(ablation_table.text(table, BASE))
    rows = table.to_pylist()
    print("seconds per word: " + ", ".join(f"{row['name']} {row['seconds']:.1f}" for row in rows))
    if options.plot:
        ablation_table.plot(table, options.plot)
        print(f"plot: {options.plot}")
    measure.write_json(options.json, {**vars(options), "rows": rows})


if __name__ == "__main__":
    main()
