"""Words of the public script and ours, judged by an encoder that chose none of them, and by identity retrieval.

    python benchmarks/judged.py --manifest benchmarks/heldout.parquet --seeds 3 --script-words benchmarks/script_words \
                                --words FOLDER [--first 12] [--json PATH]

The script's words are read from files that `against_script.py --words` wrote; none is learned again. Ours are learned
in this process, without Ray and untimed, with the settings and seeds of that comparison; finished ones stay in --words
FOLDER. Both words of each concept are drawn with the same prompt and noise. Each picture of a word is held against the
images of all concepts of the manifest, by both encoders. --first N: so many pairs, each concept's first seed first.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import job, measure
from benchmarks.against_script import with_seeds
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.retrieval import Features, retrieval_top1
from textinv_ray.concepts.word_files import Word, read_words, store_word
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import scoring
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.review import Pictures, Subject, evaluate_words, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.words import rows_of
from textinv_ray.service.models import loading, sources
from textinv_ray.util.statistics import mean_of, paired_p

SIDES = ("initializer", "script", "ours")
CONCEPTS_AT_ONCE = 8


def learn(
    backbone: Backbone, scorer: Scorer, concepts: Sequence[Concept], config: JobConfig
) -> Iterator[ConceptTask]:
    """Learns concepts in packs with the configuration's stopping rule, as a worker does; yields them as they end."""
    size = config.pack.size if isinstance(config.pack.size, int) else CONCEPTS_AT_ONCE
    pack, waiting = Pack(backbone, config, size), list(concepts)

    def evaluate(tasks: Sequence[ConceptTask]) -> None:
        due = [task for task in tasks if task.evaluation_due]
        subjects = [Subject(task.concept, task.vectors) for task in due]
        if due:
            for task, score in zip(due, evaluate_words(backbone, scorer, subjects, config), strict=True):
                task.record(score)

    while waiting or pack.tasks:
        while waiting and pack.free:
            pack.add(ConceptTask(waiting.pop(0), backbone, config))
        if config.stopping.rule == "clip":
            due = [task for task in pack.tasks if task.evaluation_due]
            evaluate(due)
            for task in due:
                task.apply_stopping()
                if task.done:
                    pack.remove(task)
                    yield task
        if pack.tasks:
            ended = pack.step()
            evaluate(ended)
            yield from ended


def encoded(
    backbone: Backbone,
    encoders: dict[str, Encoder],
    concepts: Sequence[Concept],
    words: Sequence[Word | None],
    config: JobConfig,
) -> dict[str, list[torch.Tensor]]:
    """Encoder -> features of the pictures of the image prompt, for each word; None: the initializer."""
    prompt, kept = config.scoring.image_prompt.object, Pictures()
    subjects = [
        Subject(
            dataclasses.replace(concept, prompts=(prompt,)),
            None if word is None else rows_of(backbone, word),
        )
        for concept, word in zip(concepts, words, strict=True)
    ]
    found: dict[str, list[torch.Tensor]] = {name: [] for name in encoders}
    for one in review(backbone, None, subjects, config, kept):
        for name, encoder in encoders.items():
            found[name].append(encoder.image_features(one.samples[prompt]))
    return found


def judge(
    pictures: dict[str, dict[str, list[torch.Tensor]]],
    views: dict[str, dict[str, torch.Tensor]],
    concepts: Sequence[Concept],
) -> dict[str, dict[str, list[float]]]:
    """Side -> score -> a value for each character (its seeds averaged)."""
    names = [concept.concept_id.rpartition("-seed")[0] for concept in concepts]
    found: dict[str, dict[str, list[float]]] = {}
    for side, by_encoder in pictures.items():
        found[side] = {}
        for encoder, features in by_encoder.items():
            own = views[encoder]
            likeness = [
                scoring.image_similarity(one, own[name]) for one, name in zip(features, names, strict=True)
            ]
            found[side][f"{encoder} similarity"] = averaged(names, likeness)
            together = [
                Features.of(
                    torch.cat([one for one, of in zip(features, names, strict=True) if of == name])
                    .cpu()
                    .numpy()
                    if name in names
                    else features[0][:0].cpu().numpy(),
                    of_concept.cpu().numpy(),
                )
                for name, of_concept in own.items()
            ]
            top1 = dict(zip(own, retrieval_top1(together), strict=True))
            found[side][f"{encoder} retrieval top 1"] = [top1[name] for name in dict.fromkeys(names)]
    return found


def averaged(names: Sequence[str], values: Sequence[float]) -> list[float]:
    """The mean of each name's values, in order of the names."""
    return [
        statistics.mean(value for of, value in zip(names, values, strict=True) if of == name)
        for name in dict.fromkeys(names)
    ]


def rows(found: dict[str, dict[str, list[float]]]) -> Iterator[dict[str, Any]]:
    for score, script in found["script"].items():
        differences = [b - a for a, b in zip(script, found["ours"][score], strict=True)]
        yield {
            "": score,
            **{side: str(mean_of(found[side][score])) for side in SIDES},
            "ours - script": f"{mean_of(differences)}, p {paired_p(differences):.3f}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", default=str(job.EXAMPLES))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="words of each concept")
    parser.add_argument("--first", type=int, help="so many pairs, each concept's first seed first")
    parser.add_argument("--script-words", type=Path, required=True)
    parser.add_argument("--words", type=Path, required=True, help="where our words stay")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--images", type=int, default=8, help="pictures of each word")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config = JobConfig.load(options.config, options.set)
    plain = job.concepts_of(options.manifest, config, options.limit)
    concepts = with_seeds(plain, options.seeds)
    concepts = sorted(concepts, key=lambda one: one.seed % options.seeds)[: options.first]
    theirs = {
        path.name.rpartition("-")[0]: next(iter(read_words(path).values()))
        for path in sorted(options.script_words.glob("*.safetensors"))
    }
    backbone, scorer = load_backbone(sources.resolve(config.model.path)), loading.scorer(config)
    encoders: dict[str, Encoder] = {"mini-clip (chose)": scorer}
    if judging := loading.judge(config):
        encoders["judge"] = judging
    options.words.mkdir(parents=True, exist_ok=True)
    files = {one.concept_id: options.words / f"{one.concept_id}.safetensors" for one in concepts}
    missing = [one for one in concepts if not files[one.concept_id].exists()]
    for task in learn(backbone, scorer, missing, config):
        parts = {name: part.numpy() for name, part in backbone.split(task.vectors).items()}
        data = store_word(task.concept.placeholder_token, parts)
        files[task.concept.concept_id].write_bytes(data)
        print(f"learned {task.concept.concept_id} in {task.step} steps", flush=True)
    ours = {name: next(iter(read_words(path).values())) for name, path in files.items()}
    sides: dict[str, list[Word | None]] = {
        "initializer": [None] * len(concepts),
        "script": [theirs[one.concept_id] for one in concepts],
        "ours": [ours[one.concept_id] for one in concepts],
    }
    drawn = config.override([f"review.images_per_prompt={options.images}"])
    pictures = {side: encoded(backbone, encoders, concepts, words, drawn) for side, words in sides.items()}
    views = {
        name: {one.concept_id: scoring.crop_features(encoder, one.images).flatten(0, 1) for one in plain}
        for name, encoder in encoders.items()
    }
    found = judge(pictures, views, concepts)
    print(f"{len(concepts)} words of each side, {len(plain)} concepts")
    print(measure.table(list(rows(found))))
    print("(mean over concepts, seeds averaged, with its 95 % bootstrap interval; last: paired differences)")
    measure.write_json(options.json, {"words": len(concepts), "scores": found, "table": list(rows(found))})


if __name__ == "__main__":
    main()
