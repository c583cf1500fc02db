"""How good words are after how many steps and seconds, with and without stopping early: as a table and a plot.

    python benchmarks/quality_vs_steps.py [--at 10,25,50,100,200,400] [--seeds 1] [--manifest PATH] [--config mini]
                                          [--stopping "SECTION.FIELD=VALUE ..." ...] [--predictor PATH ...]
                                          [--plot PATH.png] [--json PATH]

Every word is learned once to the last of --at and scored at each of them; scoring isn't part of the seconds. With each
--stopping (settings under which words stop by themselves, such as "stopping.rule=clip") all are learned once more, and
the mean of where they stopped is a point of its own. With each --predictor (of `textinv predictor fit`) all are learned
once more from the predicted words; 0 steps are these words. One process, no Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from torch import Tensor

from benchmarks import job, measure
from benchmarks.against_script import SCORES, with_seeds
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.predictor import Predictor
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.prediction import with_prediction
from textinv_ray.inversion.review import Subject, evaluate_words, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import choose_pack_size
from textinv_ray.service.models import sources

SHOWN = ("", "steps", "seconds", *SCORES.values())


@dataclass(frozen=True)
class Word:
    """A concept's word at some moment."""

    concept: Concept
    vectors: Tensor | None
    """None: the initializer"""
    step: int
    seconds: float
    """The concept's share of the time so far"""


def learn(
    backbone: Backbone, scorer: Scorer, concepts: list[Concept], config: JobConfig, at: set[int]
) -> list[Word]:
    """Words at the steps `at`, and at their end."""

    def evaluate(tasks: list[ConceptTask]) -> None:
        start, due = measure.now(), [task for task in tasks if task.evaluation_due]
        subjects = [Subject(task.concept, task.vectors) for task in due]
        for task, score in zip(
            due, evaluate_words(backbone, scorer, subjects, config) if due else [], strict=True
        ):
            task.record(score)
        for task in due:
            seconds[task.concept.concept_id] += (measure.now() - start) / len(due)

    by_clip = config.stopping.rule == "clip"
    words, waiting, seconds = [], list(reversed(concepts)), {concept.concept_id: 0.0 for concept in concepts}
    pack: Pack | None = None
    while waiting or (pack and pack.tasks):
        while waiting and (pack is None or pack.free):
            start, concept = time.perf_counter(), waiting.pop()
            task = ConceptTask(concept, backbone, config)
            seconds[concept.concept_id] += time.perf_counter() - start
            pack = pack or Pack(backbone, config, choose_pack_size(backbone, task, config))
            pack.add(task)
        assert pack is not None
        leavers = []
        if by_clip:
            due = [task for task in pack.tasks if task.evaluation_due]
            evaluate(due)
            for task in due:
                task.apply_stopping()
                if task.done:
                    pack.remove(task)
                    leavers.append(task)
        start, tasks = measure.now(), list(pack.tasks)
        leavers += pack.step() if tasks else []
        share = (measure.now() - start) / max(1, len(tasks))
        for task in tasks:
            if task.failed:
                raise SystemExit(f"{task.concept.concept_id} failed: {task.failed}")
            seconds[task.concept.concept_id] += share
        if by_clip:
            evaluate([task for task in leavers if task.done])
        for task in dict.fromkeys([*tasks, *leavers]):
            if task.step in at or task in leavers:
                words.append(Word(task.concept, task.vectors, task.step, seconds[task.concept.concept_id]))
        for task in leavers:
            print(f"learned {task.concept.concept_id}: {task.step} steps", flush=True)
    return words


def predicted_start(concept: Concept, file: Path, scorer: Scorer) -> Concept:
    """The concept with the word of a predictor in place of its initializer."""
    predictor = Predictor.from_bytes(file.read_bytes()).only(concept.num_vectors)
    data = np.frombuffer(predictor.to_bytes(), np.uint8)
    start = dataclasses.replace(concept, initializer_token="", init_from=file.name, predictor=data)
    return with_prediction(start, scorer)


def point(
    name: str, words: list[Word], backbone: Backbone, scorer: Scorer, config: JobConfig
) -> dict[str, Any]:
    """A row of the table: the mean over words."""
    reviews = review(backbone, scorer, [Subject(word.concept, word.vectors) for word in words], config)
    by_concept: dict[str, list[Any]] = {}
    for word, found in zip(words, reviews, strict=True):
        by_concept.setdefault(word.concept.concept_id.rpartition("-seed")[0], []).append(found)
    row: dict[str, Any] = {
        "": name,
        "steps": round(statistics.mean(word.step for word in words), 1),
        "seconds": round(statistics.mean(word.seconds for word in words), 2),
    }
    for score, title in SCORES.items():
        values = [statistics.mean(getattr(one, score) for one in found) for found in by_concept.values()]
        row[title] = measure.with_error(values)
        row[score] = measure.mean_and_error(values)
    return row


def plot(path: Path, curve: list[dict[str, Any]], stopped: list[dict[str, Any]]) -> None:
    """Both scores against steps and against seconds; a mark for each rule, where words stopped by themselves."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, constrained_layout=True)
    for axis, by in zip(axes, ("steps", "seconds"), strict=True):
        for number, (score, title) in enumerate(SCORES.items()):
            line = [(row[by], *row[score]) for row in curve]
            axis.errorbar(*zip(*line, strict=True), label=title, color=f"C{number}", marker=".", capsize=2)
            for row, marker in zip(stopped, itertools.cycle("*DPX")):
                mark = {"color": f"C{number}", "marker": marker, "ms": 9, "mec": "black", "ls": ""}
                axis.errorbar(row[by], *row[score], **mark, label=row[""] if number else None)
        axis.set_xlabel(f"{by} per concept")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cosine")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--at", default="10,25,50,100,200,400", help="steps at which to score")
    parser.add_argument("--manifest", default=str(job.EXAMPLES))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="words learned for each concept")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--stopping", action="append", default=[], metavar="'SECTION.FIELD=VALUE ...'")
    parser.add_argument("--predictor", action="append", default=[], type=Path)
    parser.add_argument("--images", type=int, default=8, help="samples per prompt to score")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    at = sorted({int(step) for step in options.at.split(",")})
    plain = JobConfig.load(
        options.config,
        [
            job.STYLES_AS_OBJECTS,
            *options.set,
            "stopping.rule=none",
            f"training.steps={at[-1]}",
            f"scoring.num_images={options.images}",
        ],
    )
    model = sources.resolve(plain.model.path)
    backbone, scorer = (
        load_backbone(model, dtype=plain.model.dtype),
        Scorer.load(sources.resolve(plain.scoring.model)),
    )
    print(f"{options.config} on {measure.machine_line()}", flush=True)

    def to_learn(config: JobConfig) -> list[Concept]:
        concepts = with_seeds(job.concepts_of(options.manifest, config, options.limit), options.seeds)
        return [dataclasses.replace(concept, steps=at[-1]) for concept in concepts]

    def learned(config: JobConfig) -> list[Word]:
        return learn(backbone, scorer, to_learn(config), config, set(at))

    words = learned(plain)
    initial = [
        dataclasses.replace(word, vectors=None, step=0, seconds=0.0) for word in words if word.step == at[-1]
    ]
    curve = [point("initializer", initial, backbone, scorer, plain)]
    for step in at:
        reached = [word for word in words if word.step == step]
        curve.append(point("", reached, backbone, scorer, plain))
    stopped = []
    for settings in options.stopping:
        config = plain.override(shlex.split(settings))
        ends = list({word.concept.concept_id: word for word in learned(config)}.values())
        steps = sorted(word.step for word in ends)
        name = f"stopped by {config.stopping.rule}"
        print(
            f"{name} ({settings}): after {steps[0]} to {steps[-1]} steps, median {statistics.median(steps):g}"
        )
        stopped.append(
            {**point(name, ends, backbone, scorer, plain), "settings": settings, "stopped_at": steps}
        )
    predicted = []
    for file in options.predictor:
        concepts = [predicted_start(concept, file, scorer) for concept in to_learn(plain)]
        starts = [
            Word(concept, ConceptTask(concept, backbone, plain).vectors, 0, 0.0) for concept in concepts
        ]
        words = starts + learn(backbone, scorer, concepts, plain, set(at))
        for step in [0, *at]:
            reached = [word for word in words if word.step == step]
            predicted.append(point(file.stem, reached, backbone, scorer, plain))
    rows = curve + predicted + stopped
    print(measure.table([{name: row[name] for name in SHOWN} for row in rows]))
    print("(means over words; scores: ± standard error over concepts)")
    if options.plot:
        plot(options.plot, curve, stopped)
    measure.write_json(options.json, {**vars(options), "points": rows})


if __name__ == "__main__":
    main()
