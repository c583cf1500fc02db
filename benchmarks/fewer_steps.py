"""What needs fewer steps for the same quality? Learning rates, schedules, batch sizes, less noise per sample.

    python benchmarks/fewer_steps.py [--variants base,stratified,...] [--at 50,100,200] [--manifest PATH] [--limit N]
                                     [--seeds 1] [--config mini] [--set SECTION.FIELD=VALUE ...] [--json PATH]

    base                the configuration
    averaged-half, averaged-quarter
                        the mean of the iterates of the last half or quarter of the steps, as the word (Polyak and
                        Juditsky 1992): costs no run of its own
    stratified          the timesteps of a batch are spread, one to each part of the schedule
    stratified-images   and so are its images: as few twice as can be
    common-noise        all samples of a step get the same noise, at different timesteps
    antithetic-noise    a sample's noise is minus that of another one of its batch
    rate-X              the learning rate times X (rate-0.5, rate-2, rate-4)
    cosine-X            the same, falling to 0 by half a cosine at the last step
    batch-N             samples per step (batch-2, batch-8)

Every word is learned once to the last step of --at and scored at each; a schedule is at its end at the last one only.
Below the means stand the differences to base, paired by concept. One process, no Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import job, measure
from benchmarks.against_script import SCORES
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.draws import Draws
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.review import Pictures, Subject, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.models import sources

BASE = "base"
AVERAGES = {"averaged-half": 0.5, "averaged-quarter": 0.25}
VARIANTS = (
    *(BASE, *AVERAGES, "stratified", "stratified-images", "common-noise", "antithetic-noise"),
    *("rate-0.5", "rate-2", "rate-4", "cosine-1", "cosine-2", "cosine-4", "batch-2", "batch-8"),
)
FIRST_SEED = 100

Scores = dict[str, tuple[float, ...]]
"""Concept id (seeds averaged) -> its scores, in the order of SCORES."""


class Stratified(ConceptTask):
    """Draws whose levels, and with `images` whose images, are spread over the batch. Flips stay by chance."""

    images = False

    def draw(self) -> Draws:
        """As many levels in each part of the schedule; still uniform over all of it for each sample."""
        plain, size = super().draw(), self.concept.batch_size
        levels = (torch.arange(size) + plain.levels) / size
        if not self.images:
            return dataclasses.replace(plain, levels=levels)
        per_image = len(self.tensors["latent_means"]) // len(self.concept.images)
        within = plain.latents % per_image
        start = torch.rand(size, generator=self._generator)
        image = (torch.randperm(size, generator=self._generator) + start) / size * len(self.concept.images)
        return dataclasses.replace(plain, levels=levels, latents=image.long() * per_image + within)


class StratifiedImages(Stratified):
    images = True


class CommonNoise(ConceptTask):
    """Draws whose noise of the forward process is the same for the whole batch."""

    def draw(self) -> Draws:
        plain = super().draw()
        posterior, noise = plain.noise
        return dataclasses.replace(plain, noise=torch.stack([posterior, noise[:1].expand_as(noise)]))


class AntitheticNoise(ConceptTask):
    """Draws in which the second half of the batch has minus the noise of the first one's forward process."""

    def draw(self) -> Draws:
        plain = super().draw()
        posterior, noise = plain.noise
        noise = torch.cat([noise[: -(-len(noise) // 2)], -noise[: len(noise) // 2]])
        return dataclasses.replace(plain, noise=torch.stack([posterior, noise]))


def settings_of(variant: str, config: JobConfig) -> tuple[list[str], type[ConceptTask]]:
    """Overrides of the configuration, and the tasks, of a variant."""
    kind, _, value = variant.partition("-")
    rate = config.training.learning_rate
    match kind:
        case "rate":
            return [f"training.learning_rate={rate * float(value)}"], ConceptTask
        case "cosine":
            schedule = "training.lr_schedule=cosine"
            return [f"training.learning_rate={rate * float(value)}", schedule], ConceptTask
        case "batch":
            return [f"training.batch_size={int(value)}"], ConceptTask
        case "stratified":
            return [], StratifiedImages if value else Stratified
        case "common":
            return [], CommonNoise
        case "antithetic":
            return [], AntitheticNoise
        case _:
            return [], ConceptTask


def pack_size(config: JobConfig) -> int:
    """Of a benchmark that measures no speed: the configured one, 8 where the job would choose."""
    return 8 if config.pack.size == "auto" else config.pack.size


def steps(
    backbone: Backbone, concepts: Sequence[Concept], config: JobConfig, make: type[ConceptTask] = ConceptTask
) -> Iterator[ConceptTask]:
    """Learns all concepts, in packs: gives each task at its start and after each of its steps.

    Raises SystemExit when a concept fails.
    """
    pack, waiting = Pack(backbone, config, pack_size(config)), list(reversed(concepts))
    while pack.tasks or waiting:
        while pack.free and waiting:
            pack.add(task := make(waiting.pop(), backbone, config))
            yield task
        tasks = list(pack.tasks)
        pack.step()
        for task in tasks:
            if task.failed:
                raise SystemExit(f"{task.concept.concept_id} failed: {task.failed}")
            yield task


def learn(
    backbone: Backbone,
    concepts: Sequence[Concept],
    config: JobConfig,
    make: type[ConceptTask],
    at: Sequence[int],
) -> dict[tuple[str, int], list[Tensor]]:
    """(concept id, step of `at`) -> the word after every step so far."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    iterates: dict[str, list[Tensor]] = {concept.concept_id: [] for concept in concepts}
    for task in steps(backbone, concepts, config, make):
        name = task.concept.concept_id
        if task.step:
            iterates[name].append(task.vectors)
        if task.step in at:
            found[name, task.step] = list(iterates[name])
    return found


def words_of(variants: Sequence[str], variant: str, iterates: list[Tensor]) -> dict[str, Tensor]:
    """The words of a run by the variant that they stand for: its last iterate and, of base, means."""
    found = {variant: iterates[-1]}
    if variant == BASE:
        for name, share in AVERAGES.items():
            if name in variants:
                found[name] = torch.stack(iterates[int(len(iterates) * (1 - share)) :]).mean(dim=0)
    return found


def score(
    backbone: Backbone,
    scorer: Scorer,
    words: Sequence[tuple[Concept, Tensor]],
    config: JobConfig,
    seen: Pictures,
) -> Scores:
    """Of each concept, the mean over its seeds."""
    by_name: dict[str, list[tuple[float, ...]]] = {}
    for start in range(0, len(words), 16):
        subjects = [Subject(*word) for word in words[start : start + 16]]
        for subject, one in zip(subjects, review(backbone, scorer, subjects, config, seen), strict=True):
            name = subject.concept.concept_id.rpartition("-seed")[0]
            by_name.setdefault(name, []).append(tuple(float(getattr(one, score)) for score in SCORES))
    return {name: tuple(map(statistics.mean, zip(*found, strict=True))) for name, found in by_name.items()}


def rows_of(scores: dict[tuple[str, int], Scores]) -> list[dict[str, object]]:
    """The table: means, and differences to base at the same step."""
    rows = []
    for (variant, step), found in scores.items():
        row: dict[str, object] = {"": variant, "step": step}
        for number, title in enumerate(SCORES.values()):
            row[title] = measure.with_error([one[number] for one in found.values()])
        base = scores.get((BASE, step))
        for number, title in enumerate(SCORES.values()):
            row[f"{title} - base"] = (
                measure.with_error([found[name][number] - base[name][number] for name in found], "+")
                if base and variant != BASE
                else None
            )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", default=",".join(VARIANTS), help="base is always among them")
    parser.add_argument("--at", default="50,100,200", help="steps at which to score")
    parser.add_argument("--manifest", default=str(job.EXAMPLES))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="words learned for each concept")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    variants = list(dict.fromkeys([BASE, *options.variants.split(",")]))
    if unknown := [name for name in variants if name not in VARIANTS]:
        parser.error(f"no variant {', '.join(unknown)} (known: {', '.join(VARIANTS)})")
    at = sorted({int(step) for step in options.at.split(",")})
    config = JobConfig.load(
        options.config,
        [job.STYLES_AS_OBJECTS, "stopping.rule=none", *options.set, f"training.steps={at[-1]}"],
    )
    backbone = load_backbone(sources.resolve(config.model.path), dtype=config.model.dtype)
    scorer = Scorer.load(sources.resolve(config.scoring.model))
    seen: Pictures = {}
    print(f"{options.config} on {measure.machine_line()}", flush=True)

    scores: dict[tuple[str, int], Scores] = {}
    for variant in [name for name in variants if name not in AVERAGES]:
        overrides, make = settings_of(variant, config)
        own = config.override(overrides)
        concepts = {
            f"{concept.concept_id}-seed{seed}": dataclasses.replace(
                concept, concept_id=f"{concept.concept_id}-seed{seed}", seed=FIRST_SEED + seed, steps=at[-1]
            )
            for concept in job.concepts_of(options.manifest, own, options.limit)
            for seed in range(options.seeds)
        }
        learned = learn(backbone, list(concepts.values()), own, make, at)
        for step in at:
            words: dict[str, list[tuple[Concept, Tensor]]] = {}
            for name, concept in concepts.items():
                for kind, vectors in words_of(variants, variant, learned[name, step]).items():
                    words.setdefault(kind, []).append((concept, vectors))
            for kind, of_kind in words.items():
                scores[kind, step] = score(backbone, scorer, of_kind, config, seen)
                print(measure.table(rows_of(scores)[-1:]), flush=True)
    rows = rows_of(scores)
    print(measure.table(rows))
    print("(± standard error over concepts; differences are paired)")
    measure.write_json(
        options.json,
        {
            **vars(options),
            "table": rows,
            "scores": {f"{name}/{step}": one for (name, step), one in scores.items()},
        },
    )


if __name__ == "__main__":
    main()
