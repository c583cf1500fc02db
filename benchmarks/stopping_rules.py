"""When should learning stop? Fixed numbers of steps and settings of `stopping.rule`, applied to the same words.

    python benchmarks/stopping_rules.py [--rules 100,clip/20/3/300,dvar/10/28/0.39/300,...] [--predictor FILE]
                                        [--manifest benchmarks/heldout.parquet] [--limit N] [--seeds 1] [--images 8]
                                        [--config mini] [--set SECTION.FIELD=VALUE ...] [--json PATH]

    N                                    that many steps; 0: the start as it is
    clip/EVERY/PATIENCE/STEPS[/SAMPLING] `stopping.rule: clip`, STEPS at most; SAMPLING: sampling steps of an evaluation
    dvar/EVERY/WINDOW/THRESHOLD/STEPS    `stopping.rule: dvar`
    RULE@FIRST                           with `stopping.min_steps` FIRST. From 0 on `clip` evaluates the start, too.

Each word is learned once, for as many steps as any rule may take: from its initializer, or with --predictor (of
`textinv predictor fit`) from the word that is predicted. It is evaluated wherever any rule does; all rules are then
applied to the same evaluations. The words that they keep are judged on images that none was learned from
(data.holdout, 2): likeness by the scoring model and by the judge, editability, retrieval by the judge and the denoising
loss, with noise that no evaluation used. Columns "- first" are differences to the first rule, paired by concept, with
95 % intervals. Seconds: a rule's steps and evaluations at the speed of this run, per word. The learning rate must not
depend on the number of steps (`lr_schedule: constant`). One process, no Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from torch import Tensor

from benchmarks import fewer_steps, job, measure
from benchmarks.against_script import with_seeds
from benchmarks.judging import HELDOUT, Judged, judge_each, values_of
from benchmarks.quality_vs_steps import Word, predicted_start
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig
from textinv_ray.inversion import stopping
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.review import Pictures, Subject, evaluate_words
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.models import loading
from textinv_ray.util.statistics import mean_of

RULES = "300,100,clip/20/3/300,clip/20/6/300,clip/20/3/300/10,clip/10/3/300,dvar/10/28/0.39/300,dvar/10/10/0.2/300"
CONCEPTS_AT_ONCE = 16
TIMED_STEPS = 10


@dataclass(frozen=True)
class Rule:
    """A way to stop, as on the command line."""

    text: str
    steps: int
    """The most that are taken."""
    stopping: StoppingConfig
    min_steps: int | None
    """In place of `stopping.min_steps`, as a concept's own."""

    @classmethod
    def parse(cls, text: str, base: StoppingConfig) -> Rule:
        """`base`: what the text doesn't say. Raises ValueError for what isn't in one of the forms above."""
        numbers, at, first = text.partition("@")
        name, *parts = numbers.split("/")
        whole = base.model_dump()
        if name == "clip":
            every, patience, steps, *sampling = map(int, parts)
            whole["clip"] |= {"every": every, "patience": patience}
            if sampling:
                (whole["clip"]["num_inference_steps"],) = sampling
        elif name == "dvar":
            interval, window, threshold, last = parts
            whole["dvar"] |= {"every": int(interval), "window": int(window), "threshold": float(threshold)}
            steps = int(last)
        else:
            name, steps = "none", int(numbers)
        if steps < (name != "none") or (at and int(first) < 0):
            raise ValueError(text)
        rule = StoppingConfig.model_validate({**whole, "rule": name})
        return cls(text, steps, rule, int(first) if at else None)

    @property
    def kind(self) -> tuple[str, int]:
        """Rules of one kind share their evaluations: the rule, and for `clip` the sampling steps."""
        return self.stopping.rule, (self.stopping.clip.num_inference_steps or 0) if self._renders else 0

    @property
    def _renders(self) -> bool:
        return self.stopping.rule == "clip"

    @property
    def every(self) -> int:
        return stopping.evaluation_interval(self.stopping)

    @property
    def evaluated(self) -> list[int]:
        """All steps at which the rule may evaluate a word."""
        due = stopping.evaluation_due
        return [s for s in range(self.steps + 1) if due(s, self.steps, self.stopping, self.min_steps)]

    def applied(self, series: np.ndarray, apart: int, concept: Concept) -> tuple[int, int]:
        """(the step whose word is kept, the step where learning ends). series: evaluations at 0, apart, 2 apart, ...;
        a fixed number of steps looks at none."""
        if self.stopping.rule == "none":
            return self.steps, self.steps
        seen = np.full(self.steps // self.every + 1, np.nan)
        for step in self.evaluated:
            seen[step // self.every] = series[step // apart]
        own = dataclasses.replace(concept, min_steps=self.min_steps)
        end = stopping.stopping_step(seen, own, self.stopping)
        end = self.steps if end is None else min(end, self.steps)
        best = stopping.best_step(seen[: end // self.every + 1], own, self.stopping)
        return (end if best is None else best), end


@dataclass(frozen=True)
class Learned:
    """All words at all steps that matter."""

    words: Mapping[tuple[str, int], Tensor]
    """By concept id and step."""
    losses: np.ndarray
    """DVAR's evaluations: (number, concepts), from step 0 on, in the order of the concepts."""


def learn(backbone: Backbone, concepts: Sequence[Concept], config: JobConfig, at: set[int]) -> Learned:
    """Learns all concepts to their last step. at: the steps whose words are kept, beside 0."""
    words, losses = {}, {}
    for task in fewer_steps.steps(backbone, concepts, config):
        if task.step in {0, *at}:
            words[task.concept.concept_id, task.step] = task.vectors
        if task.done:
            losses[task.concept.concept_id] = task.state_dict()["evaluations"].double().numpy()
            print(f"learned {task.concept.concept_id}", flush=True)
    series = [losses[concept.concept_id] for concept in concepts]
    return Learned(words, np.stack(series, axis=1))


def step_seconds(backbone: Backbone, concepts: Sequence[Concept], config: JobConfig) -> float:
    """What a step of one concept takes in a full pack, DVAR's evaluation included where the configuration has it."""
    pack = Pack(backbone, config, size := fewer_steps.pack_size(config))
    for concept in concepts[:size]:
        pack.add(ConceptTask(dataclasses.replace(concept, steps=2 * TIMED_STEPS), backbone, config))
    pack.step()
    start, count = measure.now(), len(pack.tasks)
    for _ in range(TIMED_STEPS):
        pack.step()
    return (measure.now() - start) / TIMED_STEPS / count


def evaluate(
    backbone: Backbone,
    scorer: Scorer,
    concepts: Sequence[Concept],
    words: Sequence[Tensor],
    config: JobConfig,
) -> list[float]:
    """The evaluation of each concept's word, by `rule: clip`."""
    found: list[float] = []
    for start in range(0, len(concepts), CONCEPTS_AT_ONCE):
        part = slice(start, start + CONCEPTS_AT_ONCE)
        subjects = [Subject(*pair) for pair in zip(concepts[part], words[part], strict=True)]
        found += evaluate_words(backbone, scorer, subjects, config)
    return found


def row_of(
    rule: Rule,
    applied: Sequence[tuple[int, int]],
    seconds: tuple[float, float],
    values: Mapping[str, list[float]],
    first: Mapping[str, list[float]] | None,
) -> dict[str, Any]:
    """A line of the table. seconds: of a step and of an evaluation. first: the first rule's values, for the others."""
    steps = statistics.mean(end for _, end in applied)
    count = statistics.mean(sum(step <= end for step in rule.evaluated) for _, end in applied)
    row: dict[str, Any] = {
        "rule": rule.text,
        "steps": round(steps),
        "evaluations": round(count, 1),
        "seconds": round(steps * seconds[0] + count * seconds[1], 2),
        "kept": round(statistics.mean(best for best, _ in applied)),
    }
    for score, own in values.items():
        row[score] = f"{statistics.mean(own):.3f}"
        gained = first and [b - a for a, b in zip(first[score], own, strict=True)]
        row[f"{score} - first"] = str(mean_of(gained)) if gained else None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rules", default=RULES)
    parser.add_argument("--predictor", type=Path, help="of `textinv predictor fit`")
    parser.add_argument("--manifest", default=str(HELDOUT))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="words learned for each concept")
    parser.add_argument("--images", type=int, default=8, help="pictures of each word and prompt to judge")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config = JobConfig.load(
        options.config,
        [job.STYLES_AS_OBJECTS, "data.holdout=2", *options.set, f"scoring.num_images={options.images}"],
    )
    if config.training.lr_schedule != "constant":
        parser.error("training.lr_schedule must be constant: one run stands for rules of other lengths")
    rules = []
    for text in options.rules.split(","):
        try:
            rules.append(rule := Rule.parse(text, config.stopping))
        except ValueError:
            parser.error(
                f"{text!r} isn't N, clip/EVERY/PATIENCE/STEPS[/SAMPLING] or dvar/EVERY/WINDOW/THRESHOLD/STEPS"
            )
        if rule.stopping.rule != "none" and not rule.evaluated:
            parser.error(f"{text} evaluates nothing: its first step (stopping.min_steps) comes too late")
    if not (steps := max(rule.steps for rule in rules)):
        parser.error("all rules take 0 steps")
    apart = {
        kind: math.gcd(*(rule.every for rule in rules if rule.kind == kind))
        for kind in dict.fromkeys(rule.kind for rule in rules if rule.stopping.rule != "none")
    }
    every = apart.get(("dvar", 0), 0)
    plain = config.override(["stopping.rule=none", f"training.steps={steps}"])
    with_losses = plain.override(
        ["stopping.rule=dvar", f"stopping.dvar.every={every}", f"stopping.min_steps={steps}"] if every else []
    )
    backbone, scorer, judge = loading.backbone(config), loading.scorer(config), loading.judge(config)
    print(f"{options.config} on {measure.machine_line()}", flush=True)

    concepts = [
        dataclasses.replace(concept, steps=steps, prompts=(), min_steps=None)
        for concept in with_seeds(job.concepts_of(options.manifest, config, options.limit), options.seeds)
    ]
    if options.predictor:
        concepts = [predicted_start(concept, options.predictor, scorer) for concept in concepts]
    seconds = {("none", 0): (one := step_seconds(backbone, concepts, plain), 0.0)}
    if every:
        unstopped = ["stopping.dvar.every=1", f"stopping.min_steps={2 * TIMED_STEPS}"]
        both = step_seconds(backbone, concepts, with_losses.override(unstopped))
        seconds["dvar", 0] = one, max(0.0, both - one)
    at = {step for rule in rules for step in (*rule.evaluated, rule.steps)}
    learned = learn(backbone, concepts, with_losses, at)
    series = {("dvar", 0): learned.losses} if every else {}
    for kind in apart:
        if kind[0] != "clip":
            continue
        due = sorted({step for rule in rules if rule.kind == kind for step in rule.evaluated})
        own = config.override([f"stopping.clip.num_inference_steps={kind[1]}"] if kind[1] else [])
        series[kind] = np.full((steps // apart[kind] + 1, len(concepts)), np.nan)
        start = measure.now()
        for step in due:
            words = [learned.words[concept.concept_id, step] for concept in concepts]
            series[kind][step // apart[kind]] = evaluate(backbone, scorer, concepts, words, own)
        seconds[kind] = one, (measure.now() - start) / len(concepts) / len(due)
    for (name, sampling), (of_step, of_evaluation) in seconds.items():
        print(
            f"{name}{f' with {sampling} sampling steps' if sampling else ''}: {1000 * of_step:.0f} ms a step of a "
            f"concept, {1000 * of_evaluation:.0f} ms an evaluation",
            flush=True,
        )

    none = np.empty((0, len(concepts)))
    pictures: Pictures = {}
    judged: dict[tuple[str, int], Judged] = {}
    rows: list[dict[str, Any]] = []
    scores: dict[str, dict[str, list[float]]] = {}
    for rule in rules:
        applied = [
            rule.applied(series.get(rule.kind, none)[:, number], apart.get(rule.kind, 1), concept)
            for number, concept in enumerate(concepts)
        ]
        kept = [
            Word(concept, learned.words[concept.concept_id, best], best, 0.0)
            for concept, (best, _) in zip(concepts, applied, strict=True)
        ]
        new = [word for word in kept if (word.concept.concept_id, word.step) not in judged]
        for word, found in zip(new, judge_each(new, backbone, scorer, judge, config, pictures), strict=True):
            judged[word.concept.concept_id, word.step] = found
        values = values_of([judged[word.concept.concept_id, word.step] for word in kept])
        first = scores[rules[0].text] if rows else None
        scores[rule.text] = values
        rows.append(row_of(rule, applied, seconds[rule.kind], values, first))
        print(measure.table(rows[-1:]), flush=True)
    print(measure.table(rows))
    print("(means over concepts; differences paired by concept, with 95 % bootstrap intervals)")
    measure.write_json(
        options.json,
        {
            **vars(options),
            "table": rows,
            "scores": scores,
            "evaluations": {
                "/".join(map(str, kind)): [
                    [None if math.isnan(value) else value for value in row] for row in found.T.tolist()
                ]
                for kind, found in series.items()
            },
        },
    )


if __name__ == "__main__":
    main()
