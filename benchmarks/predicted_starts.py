"""What is a predicted start worth? Words from the initializer, from a catalogue's mean and from predictors, by steps.

    python benchmarks/predicted_starts.py OUTPUT [OUTPUT ...] [--sizes 40,160,640] [--at 0,5,10,25,50,100]
                                          [--manifest benchmarks/heldout.parquet] [--rates 1,0.5,0.2,0.1] [--seeds 1]
                                          [--config mini] [--set SECTION.FIELD=VALUE ...] [--scores PATH]
                                          [--refine STEPS --catalogue MANIFEST]
                                          [--plot PATH] [--json PATH]

OUTPUT: words of a catalogue, as a job or `catalogue_words.py` learns them from a manifest of `training.heldout
--others`; a predictor is fitted on the first words of a fixed draw, for each of --sizes. The manifest's concepts must
not be among them. Each is learned from each start, and judged at each of --at on images that it didn't learn from
(data.holdout, 2): likeness by the scoring model and by the judge, which has no part in the map or in the choice of a
word; editability; the share of pictures that the judge finds nearest to their own concept, among all and, where each
has rivals, among those of its style (its tag `drawn_in`); and the denoising loss, with the same draws for all starts
(lower is better). --rates: factors of the learning rate for predicted starts. --refine:
each predictor also after so many steps through the model, on the images of the manifest that the catalogue was learned
from. --scores: a file that is written after each point; what is in it is not learned or judged again. One process, no
Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import job, measure
from benchmarks.against_script import with_seeds
from benchmarks.judging import HELDOUT, JUDGE, SCORES, judge_each, values_of
from benchmarks.quality_vs_steps import Word, learn
from textinv_ray.concepts import predictor
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.predictor import Example, Predictor
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.prediction import with_prediction
from textinv_ray.inversion.review import Pictures
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.library import predicting, refinement
from textinv_ray.service.models import loading
from textinv_ray.service.store.store import Store
from textinv_ray.util.statistics import mean_of, paired_p

COLD = "initializer"
_DRAW = 0  # seed of the order of a catalogue's words


@dataclass(frozen=True)
class Start:
    """What all concepts are learned from."""

    name: str
    words: int
    """Of the catalogue; 0: none."""
    concepts: Callable[[], list[Concept]]
    """Fits what they start from: minutes, where a predictor is refined."""


@dataclass(frozen=True)
class Point:
    """The words of one start after the same number of steps."""

    start: str
    steps: int
    words: int
    """See Start."""
    seconds: float
    """Of learning, per word."""
    values: Mapping[str, list[float]]
    """Score -> a value for each concept (its seeds averaged)."""


Points = dict[tuple[str, int], Point]
"""By start and steps."""


def comparison(concepts: Sequence[Concept], examples: Sequence[Example], config: JobConfig) -> str:
    """Digest of what all points depend on."""
    parts = [repr(config.result_inputs()), *(f"{one.fingerprint} {one.seed}" for one in concepts)]
    digest = hashlib.sha256("\n".join(parts).encode())
    for example in examples:
        for part in (*example.word.values(), example.features.images):
            digest.update(part.tobytes())
    return digest.hexdigest()


def read_points(path: Path | None, key: str) -> Points:
    """The points of the file, if there is one. Raises SystemExit for a file of another comparison."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["key"] != key:
        raise SystemExit(f"{path} has scores of another comparison: other words, concepts or settings")
    points = [Point(**point) for point in found["points"]]
    return {(point.start, point.steps): point for point in points}


def write_points(path: Path | None, key: str, points: Points) -> None:
    """Replaces the file in one step, so that it is whole whenever the comparison is stopped."""
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"key": key, "points": [dataclasses.asdict(one) for one in points.values()]}))
    os.replace(part, path)


def catalogue(outputs: Sequence[str], exclude: set[str]) -> list[Example]:
    """The words of the outputs in the fixed order that sizes are cut from. Raises SystemExit for a compared concept."""
    found: list[Example] = []
    for uri in outputs:
        store = Store(uri)
        found += predicting.examples_of(store, store.concepts())
    both = sorted(exclude & {one.concept_id for one in found})
    if both:
        raise SystemExit(f"concepts of the comparison are in the catalogue: {', '.join(both[:5])}")
    found.sort(key=lambda one: one.concept_id)
    return [found[index] for index in np.random.default_rng(_DRAW).permutation(len(found))]


def from_word(concept: Concept, word: Mapping[str, np.ndarray]) -> Concept:
    """The concept as it starts from these vectors, by text encoder."""
    vectors = {name: tuple(map(tuple, part.tolist())) for name, part in word.items()}
    return dataclasses.replace(
        concept, initializer_token="", init_from="benchmark.safetensors", initial_vectors=vectors
    )


def predicted(concept: Concept, found: Predictor, scorer: Scorer) -> Concept:
    """The concept as it starts from its predicted word."""
    data = np.frombuffer(found.only(concept.num_vectors).to_bytes(), np.uint8)
    start = dataclasses.replace(
        concept, initializer_token="", init_from="benchmark.safetensors", predictor=data
    )
    return with_prediction(start, scorer)


Refine = Callable[[Sequence[Example], Predictor], Predictor]


def starts(
    concepts: list[Concept],
    examples: Sequence[Example],
    sizes: Sequence[int],
    rates: Sequence[float],
    scorer: Scorer,
    refine: Mapping[str, Refine],
) -> Iterator[Start]:
    """The initializer, the mean of the largest catalogue, and each predictor with each rate.

    refine: what else is done to a predictor, by what is added to its name.
    """
    most = examples[: sizes[-1]]
    mean = {name: np.mean([one.word[name] for one in most], axis=0) for name in most[0].word}

    @cache
    def warm(size: int, kind: str) -> list[Concept]:
        some = examples[:size]
        found = predictor.fit(some)
        if kind:
            found = refine[kind](some, found)
        for line in predicting.lines(found, 0):
            print(line, flush=True)
        return [predicted(concept, found, scorer) for concept in concepts]

    def slower(size: int, kind: str, rate: float) -> list[Concept]:
        return [dataclasses.replace(one, learning_rate=rate * one.learning_rate) for one in warm(size, kind)]

    yield Start(COLD, 0, lambda: concepts)
    yield Start(f"mean of {len(most)}", len(most), lambda: [from_word(one, mean) for one in concepts])
    for size, kind, rate in itertools.product(sizes, ("", *refine), rates):
        name = f"predicted by {size}{kind}" + (f", rate x {rate:g}" if rate != 1 else "")
        yield Start(name, size, partial(slower, size, kind, rate))


def refined(
    examples: Sequence[Example], plain: Predictor, config: JobConfig, options: argparse.Namespace
) -> Predictor:
    """The predictor after --refine steps, where that helps."""
    manifests = [options.catalogue] if options.catalogue else []
    whole = config.override(["data.holdout=0"])
    return refinement.refine(options.outputs, examples, plain, whole, options.refine, manifests)[0]


def learned(
    start: Start, at: Sequence[int], backbone: Backbone, scorer: Scorer, config: JobConfig
) -> dict[int, list[Word]]:
    """Step -> the word of each concept, in their order."""
    concepts = start.concepts()
    found = {0: [Word(one, ConceptTask(one, backbone, config).vectors, 0, 0.0) for one in concepts]}
    if any(at):
        by_step = {
            (word.step, word.concept.concept_id): word
            for word in learn(backbone, scorer, list(concepts), config, set(at))
        }
        for step in (step for step in at if step):
            found[step] = [by_step[step, one.concept_id] for one in concepts]
    return {step: found[step] for step in at}


def rows(points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """The table, with paired differences from the initializer's words after the same and after all steps."""
    cold = {point.steps: point for point in points if point.start == COLD}
    last = max(cold)
    main = JUDGE if JUDGE in points[0].values else "clip"
    for point in points:
        row: dict[str, Any] = {"": point.start, "steps": point.steps, "s": round(point.seconds, 2)}
        row |= {score: str(mean_of(values)) for score, values in point.values.items()}
        for name, other in (("same steps", point.steps), (f"{last} steps", last)):
            pairs = zip(point.values[main], cold[other].values[main], strict=True)
            differences = [own - of for own, of in pairs]
            row[f"{main} - cold's, {name}"] = f"{mean_of(differences)}, p {paired_p(differences):.3f}"
        yield row


def plot(path: Path, points: Sequence[Point]) -> None:
    """Each score against steps, a line for each start."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [score for score in SCORES if score in points[0].values]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(4 * len(shown), 4), constrained_layout=True)
    for axis, score in zip(axes, shown, strict=True):
        for name in dict.fromkeys(point.start for point in points):
            line = [
                (point.steps, *measure.mean_and_error(point.values[score]))
                for point in points
                if point.start == name
            ]
            axis.errorbar(*zip(*line, strict=True), label=name, marker=".", capsize=2)
        axis.set_title(score)
        axis.set_xlabel("steps")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT")
    parser.add_argument("--sizes", default="40,160,640", help="words of the catalogue, for a predictor each")
    parser.add_argument("--at", default="0,5,10,25,50,100", help="steps at which to judge")
    parser.add_argument("--manifest", default=str(HELDOUT), help="the concepts to compare on")
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--rates", default="1", help="factors of the learning rate of predicted starts")
    parser.add_argument("--seeds", type=int, default=1, help="words of each concept")
    parser.add_argument("--images", type=int, default=8, help="pictures per prompt to judge")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument(
        "--refine", type=int, default=0, metavar="STEPS", help="of predictors, through the model"
    )
    parser.add_argument("--catalogue", metavar="MANIFEST", help="with the catalogue's images, for --refine")
    parser.add_argument("--scores", type=Path, metavar="PATH.json", help="continue where it was stopped")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    at = sorted({int(step) for step in options.at.split(",")})
    settings = ["data.holdout=2", "scoring.judge=mini-judge", *options.set]
    fixed = ["stopping.rule=none", f"training.steps={at[-1]}", f"scoring.num_images={options.images}"]
    config = JobConfig.load(options.config, [job.STYLES_AS_OBJECTS, *settings, *fixed])
    plain = job.concepts_of(options.manifest, config, options.limit)
    examples = catalogue(options.outputs, {concept.concept_id for concept in plain})
    sizes = [size for size in sorted(map(int, options.sizes.split(","))) if size <= len(examples)]
    if not sizes:
        raise SystemExit(f"the catalogue has {len(examples)} words, fewer than any of --sizes")
    concepts = [
        # No picture but those that are scored
        dataclasses.replace(concept, steps=at[-1], prompts=())
        for concept in with_seeds(plain, options.seeds)
    ]
    backbone, scorer = loading.backbone(config), loading.scorer(config)
    judge = loading.judge(config)
    print(f"{options.config} on {measure.machine_line()}; a catalogue of {len(examples)} words", flush=True)
    key = comparison(concepts, examples, config)
    known = read_points(options.scores, key)
    points: list[Point] = []
    refine: dict[str, Refine] = {}
    if options.refine:
        refine[f", {options.refine} steps on"] = partial(refined, config=config, options=options)
    kept: Pictures = {}
    factors = [float(rate) for rate in options.rates.split(",")]
    for start in starts(concepts, examples, sizes, factors, scorer, refine):
        missing = [step for step in at if (start.name, step) not in known]
        made = learned(start, missing, backbone, scorer, config) if missing else {}
        for step, found in made.items():
            values = values_of(judge_each(found, backbone, scorer, judge, config, kept))
            seconds = statistics.mean(word.seconds for word in found)
            known[start.name, step] = Point(start.name, step, start.words, seconds, values)
            write_points(options.scores, key, known)
        points += [known[start.name, step] for step in at]
    table = list(rows(points))
    print(measure.table(table))
    print(f"(mean over {len(plain)} concepts with its 95 % bootstrap interval; differences are paired)")
    if options.plot:
        plot(options.plot, points)
    measure.write_json(
        options.json,
        {**vars(options), "points": [dataclasses.asdict(point) for point in points], "table": table},
    )


if __name__ == "__main__":
    main()
