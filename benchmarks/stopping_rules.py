"""Which interval, patience and maximum number of steps suit `stopping.rule: clip`?

    python benchmarks/clip_rule.py [--steps 600] [--every 20] [--rules 20/4/200,20/8/400/10,...] [--seeds 1]
                                   [--manifest PATH] [--limit N] [--images 8] [--config mini]
                                   [--set SECTION.FIELD=VALUE ...] [--json PATH]

A rule is EVERY/PATIENCE/STEPS[/SAMPLING]: `stopping.clip.every` (a multiple of --every), `stopping.clip.patience`,
`training.steps` and `stopping.clip.num_inference_steps`. Every word is learned once, for --steps steps, and evaluated
wherever any rule evaluates it. All rules are then applied to the same evaluations, and the words that they would have
kept are scored, from noise that no evaluation used. Columns "- first" are differences to the first rule, paired by
concept. Seconds: a rule's steps and evaluations at the speed of this run. One process, no Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from torch import Tensor

from benchmarks import fewer_steps, job, measure
from benchmarks.against_script import SCORES, with_seeds
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig
from textinv_ray.inversion import stopping
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.review import Pictures, Subject, evaluate_words
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.models import sources

RULES = "20/6/400,20/6/400/10,20/3/200,20/4/200,20/8/400,20/10/600,20/30/600"
CONCEPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Rule:
    """A setting of the rule, as on the command line."""

    every: int
    patience: int
    steps: int
    sampling: int

    @classmethod
    def parse(cls, text: str, sampling: int) -> Rule:
        """`sampling`: what it is unless the text says it. Raises ValueError for what isn't 3 or 4 numbers above 0."""
        every, patience, steps, *last = (int(part) for part in text.split("/"))
        (own,) = last or [sampling]
        if min(every, patience, steps, own) <= 0:
            raise ValueError(text)
        return cls(every, patience, steps, own)

    def __str__(self) -> str:
        return f"{self.every}/{self.patience}/{self.steps}/{self.sampling}"

    def evaluations(self, base: StoppingConfig) -> set[tuple[int, int]]:
        """All (sampling, step) at which this rule may evaluate a word."""
        at, settings = range(0, self.steps + 1, self.every), self._set(base)
        return {(self.sampling, step) for step in at if stopping.evaluation_due(step, self.steps, settings)}

    def applied(
        self, series: np.ndarray, apart: int, concept: Concept, base: StoppingConfig
    ) -> tuple[int, int]:
        """(the step whose word is kept, the step where learning ends). series: evaluations at 0, apart, 2 apart, ..."""
        settings = self._set(base)
        seen = series[:: self.every // apart][: self.steps // self.every + 1]
        end = stopping.stopping_step(seen, concept, settings)
        if end is not None:
            seen = seen[: end // self.every + 1]
        best = stopping.best_step(seen, concept, settings)
        assert best is not None, "a rule has at least one evaluation"
        return best, self.steps if end is None else end

    def _set(self, base: StoppingConfig) -> StoppingConfig:
        clip = base.clip.model_copy(update={"every": self.every, "patience": self.patience})
        return base.model_copy(update={"rule": "clip", "clip": clip})


def evaluate(
    backbone: Backbone,
    scorer: Scorer,
    concepts: Sequence[Concept],
    words: Sequence[Tensor],
    config: JobConfig,
) -> list[float]:
    """The evaluation of each concept's word."""
    found: list[float] = []
    for start in range(0, len(concepts), CONCEPTS_AT_ONCE):
        part = slice(start, start + CONCEPTS_AT_ONCE)
        subjects = [Subject(*pair) for pair in zip(concepts[part], words[part], strict=True)]
        found += evaluate_words(backbone, scorer, subjects, config)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--rules", default=RULES)
    parser.add_argument("--manifest", default=str(job.EXAMPLES))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="words learned for each concept")
    parser.add_argument("--images", type=int, default=8, help="samples per prompt to score")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    given = JobConfig.load(options.config, [*options.set, f"scoring.num_images={options.images}"])
    sampling = given.stopping.clip.num_inference_steps or given.review.num_inference_steps
    rules = []
    for text in options.rules.split(","):
        try:
            rule = Rule.parse(text, sampling)
        except ValueError:
            parser.error(f"{text!r} isn't EVERY/PATIENCE/STEPS[/SAMPLING]")
        evaluated = rule.evaluations(given.stopping)
        if rule.every % options.every or rule.steps > options.steps or not evaluated:
            parser.error(
                f"{rule}: needs a multiple of --every {options.every}, at most --steps {options.steps}, "
                f"and an evaluation at step {given.stopping.min_steps} (stopping.min_steps) or later"
            )
        rules.append(rule)
    config = given.override(["stopping.rule=none", f"training.steps={options.steps}"])
    backbone = load_backbone(sources.resolve(config.model.path), dtype=config.model.dtype)
    scorer = Scorer.load(sources.resolve(config.scoring.model))
    print(f"{options.config} on {measure.machine_line()}", flush=True)

    concepts = with_seeds(job.concepts_of(options.manifest, config, options.limit), options.seeds)
    concepts = [dataclasses.replace(concept, steps=options.steps) for concept in concepts]
    at = range(options.every, options.steps + 1, options.every)
    start = measure.now()
    iterates = fewer_steps.learn(backbone, concepts, config, ConceptTask, at)
    step_seconds = (measure.now() - start) / len(concepts) / options.steps
    words = {step: [iterates[concept.concept_id, step][-1] for concept in concepts] for step in at}
    print(f"learned: {1000 * step_seconds:.0f} ms a step of a concept", flush=True)
    wanted = set[tuple[int, int]]().union(*(rule.evaluations(given.stopping) for rule in rules))
    series, evaluation_seconds = {}, {}
    for sampling in sorted({sampling for sampling, _ in wanted}):
        own = given.override([f"stopping.clip.num_inference_steps={sampling}"])
        series[sampling] = np.full((len(at) + 1, len(concepts)), np.nan)
        steps_of = sorted(step for one, step in wanted if one == sampling)
        start = measure.now()
        for step in steps_of:
            found = evaluate(backbone, scorer, concepts, words[step], own)
            series[sampling][step // options.every] = found
        evaluation_seconds[sampling] = (measure.now() - start) / len(concepts) / len(steps_of)
        print(
            f"{sampling} sampling steps: {1000 * evaluation_seconds[sampling]:.0f} ms an evaluation",
            flush=True,
        )

    seen: Pictures = {}
    rows: list[dict[str, Any]] = []
    first: fewer_steps.Scores = {}
    for rule in rules:
        applied = [
            rule.applied(series[rule.sampling][:, number], options.every, concept, given.stopping)
            for number, concept in enumerate(concepts)
        ]
        kept = [
            (concept, words[best][number])
            for number, (concept, (best, _)) in enumerate(zip(concepts, applied, strict=True))
        ]
        scores = fewer_steps.score(backbone, scorer, kept, config, seen)
        first = first or scores
        steps = statistics.mean(end for _, end in applied)
        evaluated_at = [step for _, step in rule.evaluations(given.stopping)]
        count = statistics.mean(sum(step <= end for step in evaluated_at) for _, end in applied)
        row: dict[str, Any] = {
            "every/patience/steps/sampling": str(rule),
            "steps": round(steps),
            "evaluations": round(count, 1),
        }
        row |= {
            "seconds": round(steps * step_seconds + count * evaluation_seconds[rule.sampling], 2),
            "best": round(statistics.mean(best for best, _ in applied)),
        }
        for number, title in enumerate(SCORES.values()):
            row[title] = measure.with_error([one[number] for one in scores.values()])
            gained = [scores[name][number] - first[name][number] for name in scores]
            row[f"{title} - first"] = measure.with_error(gained, "+") if rows else None
        rows.append(row)
        print(measure.table([row]), flush=True)
    print(measure.table(rows))
    print("(means over words; scores: ± standard error over concepts, differences paired by concept)")
    measure.write_json(
        options.json,
        {
            **vars(options),
            "table": rows,
            "ms_per_step": 1000 * step_seconds,
            "ms_per_evaluation": {
                sampling: 1000 * seconds for sampling, seconds in evaluation_seconds.items()
            },
            "evaluations": {
                sampling: [
                    [None if math.isnan(score) else score for score in row] for row in found.T.tolist()
                ]
                for sampling, found in series.items()
            },
        },
    )


if __name__ == "__main__":
    main()
