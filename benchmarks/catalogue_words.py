"""How many words a second does one device learn, without Ray? Learns a manifest's words into an output.

    python benchmarks/catalogue_words.py MANIFEST OUTPUT [--config mini] [--steps 100] [--pack 64] [--processes 1]
                                         [--limit N] [--seconds S] [--set SECTION.FIELD=VALUE ...] [--json PATH]

Every concept takes the same number of steps. The output has each word's `result.json`, vectors, history, state and
image features, but no pictures and no scores: what `textinv predictor fit OUTPUT` reads. Concepts that are in it
already are left out. --processes: share the manifest and the device out; a GPU waits less for each of them. --seconds:
no pack begins that would end later, if it takes as long as the one before.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import measure
from textinv_ray.concepts import image_features, word_files
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.image_features import ImageFeatures
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.scoring import Scorer, crop_features
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import concept_of
from textinv_ray.service.models import loading, sources
from textinv_ray.service.store.history import History
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker import artifacts
from textinv_ray.service.worker.engine import Engine
from textinv_ray.util.redact import redact


@dataclass(frozen=True)
class Learned:
    """What one process has done."""

    words: int
    failed: dict[str, str]
    """concept_id -> why."""
    seconds: float
    """Of its packs, with preparation and writing, without loading the models."""


def concepts_of(
    manifest: str, config: JobConfig, done: set[str], limit: int | None, part: int, parts: int
) -> list[Concept]:
    """The concepts of every `parts`-th row from row `part` on that are not done, prepared as a job would."""
    opened, facts = Manifest.open(manifest), sources.facts(config.model)
    rows = itertools.islice(opened.rows(), part, limit, parts)
    return [concept_of(row, config, opened.base, facts) for row in rows if row["concept_id"] not in done]


def learn_pack(engine: Engine, concepts: Sequence[Concept]) -> tuple[list[ConceptTask], dict[str, str]]:
    """The tasks that have learned to their last step, and why others haven't."""
    failed: dict[str, str] = {}
    pack, tasks = engine.pack(len(concepts)), []
    for concept in concepts:
        try:
            task = engine.task(concept)
            pack.add(task)
        except ValueError as error:
            failed[concept.concept_id] = str(error)
        else:
            tasks.append(task)
    while pack.tasks:
        pack.step()
    failed |= {task.concept.concept_id: task.failed for task in tasks if task.failed}
    return [task for task in tasks if not task.failed], failed


def write(
    store: Store, engine: Engine, scorer: Scorer, config: JobConfig, task: ConceptTask, seconds: float
) -> None:
    """Makes a concept done in the store. Raises ValueError for a word with values that aren't finite."""
    concept = task.concept
    history = History(concept.state_fingerprint, artifacts.review_fingerprint(concept, config))
    history.planned_steps = concept.steps
    history.at(0)
    history.at(task.step, seconds)
    history.set_losses(task.loss_history.tolist())
    word, initial = engine.split(task.vectors), engine.split(task.initial_word)
    result = artifacts.result(task, history, word, engine.nearest_words(task.vectors), {}, "")
    images = crop_features(scorer, concept.images).mean(dim=1).cpu().numpy()
    features = ImageFeatures(images, redact(config.scoring.model), concept.model_identity)
    files = {
        name: word_files.store_word(
            concept.placeholder_token, {encoder: part.numpy() for encoder, part in vectors.items()}
        )
        for name, vectors in ((word_files.STORED, word), (word_files.INITIAL, initial))
    } | {
        "state.safetensors": task.to_bytes(),
        "history.parquet": history.to_bytes(),
        image_features.FILE: features.to_bytes(),
    }
    store.finish(result, files)


def learn(part: int, options: argparse.Namespace, settings: Sequence[str]) -> Learned:
    """Learns one part of the manifest's words. Raises UserError for a manifest or model that can't be used."""
    torch.set_num_threads(1 if options.processes > 1 else torch.get_num_threads())
    config, store = JobConfig.load(options.config, settings), Store(options.output)
    backbone, scorer = loading.backbone(config), loading.scorer(config)
    engine = Engine(backbone, scorer, config)
    failed: dict[str, str] = {}
    start, words, longest = time.monotonic(), 0, 0.0
    done = {result.concept_id for result in store.results()}
    waiting = concepts_of(options.manifest, config, done, options.limit, part, options.processes)
    while waiting and time.monotonic() - start + longest < options.seconds:
        began = time.monotonic()
        chunk, waiting = waiting[: options.pack], waiting[options.pack :]
        tasks, why = learn_pack(engine, chunk)
        failed |= why
        for task in tasks:
            try:
                write(store, engine, scorer, config, task, (time.monotonic() - began) / len(chunk))
                words += 1
            except ValueError as error:
                failed[task.concept.concept_id] = str(error)
        longest = max(longest, time.monotonic() - began)
        print(f"part {part}: {words} words, {time.monotonic() - start:.1f} s", flush=True)
    return Learned(words, failed, time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest")
    parser.add_argument("output")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pack", type=int, default=64, help="concepts that learn together")
    parser.add_argument("--processes", type=int, default=1, help="that share the manifest and the device")
    parser.add_argument("--limit", type=int, help="rows of the manifest")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = [*options.settings, f"training.steps={options.steps}", "stopping.rule=none"]
    checks.check(Manifest.open(options.manifest), JobConfig.load(options.config, settings))

    start = time.monotonic()
    run = partial(learn, options=options, settings=settings)
    if options.processes == 1:
        parts = [run(0)]
    else:  # a process that has used CUDA can't be forked
        with ProcessPoolExecutor(
            options.processes, mp_context=multiprocessing.get_context("spawn")
        ) as processes:
            parts = list(processes.map(run, range(options.processes)))
    words, seconds = sum(part.words for part in parts), max(part.seconds for part in parts)
    failed = {name: why for part in parts for name, why in part.failed.items()}
    row = {
        "words": words,
        "steps": options.steps,
        "pack": options.pack,
        "processes": options.processes,
        "failed": len(failed),
        "seconds": seconds,
        "words/s": words / seconds,
        "of the command": time.monotonic() - start,
    }
    print(f"{options.config} on {measure.machine_line()}")
    print(measure.table([row]))
    for name, why in itertools.islice(failed.items(), 10):
        print(f"{name}: {why}")
    measure.write_json(options.json, {**row, "why": failed})


if __name__ == "__main__":
    main()
