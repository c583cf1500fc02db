"""Words of the public script and ours, judged by an encoder that chose none of them, on images that no side saw.

    python benchmarks/judged.py --script-words benchmarks/script_words [--manifest benchmarks/heldout.parquet]
                                [--seeds 1] [--holdout 2] [--predictor FILE [--predicted-steps 0,25]]
                                [--grid PATH] [--json PATH]

The script's words are read from files that `against_script.py --holdout 2 --words` wrote; none is learned again, and
concepts that have none are left out. Ours are learned in this process, without Ray and untimed, with the settings and
seeds of that comparison: by the preset, and with --predictor from predicted words in few steps. All are drawn with the
same prompts and noise and held against the --holdout images of each concept: likeness by the scoring model (which
chose the preset's words) and by the judge, retrieval among the concepts by the judge, and the denoising loss, with the
same draws for all sides (lower is better); editability needs no images. --grid: a PNG with two images of each concept,
the first that it was learned from and the first that it is judged by, and two pictures of each side's word.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageDraw, ImageFont

from benchmarks import job, measure
from benchmarks.against_script import with_seeds
from benchmarks.judging import HELDOUT, Judged, judge_each, values_of
from benchmarks.quality_vs_steps import Word, learn, predicted_start
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.word_files import read_words
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.review import Pictures
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.words import rows_of
from textinv_ray.service.models import loading
from textinv_ray.util.statistics import mean_of, paired_p

SHOWN = 2
"""Pictures of each word in the grid."""
SCALE, GAP, TITLE_PIXELS = 2, 4, 18


def learned(concepts: Sequence[Concept], backbone: Backbone, scorer: Scorer, config: JobConfig) -> list[Word]:
    """The word that each concept ends with, in their order."""
    ends = {word.concept.concept_id: word for word in learn(backbone, scorer, list(concepts), config, set())}
    return [ends[concept.concept_id] for concept in concepts]


def grid(concepts: Sequence[Concept], judged: Mapping[str, Sequence[Judged]]) -> Image.Image:
    """A row for each concept: an image to learn from, one to judge by, and SHOWN pictures of each side's word."""
    lines = []
    for number, concept in enumerate(concepts):
        line = [concept.images[0, 0], concept.reference_images[0, 0]]
        for words in judged.values():
            (pictures,) = words[number].review.samples.values()
            line += list(pictures[:SHOWN])
        lines.append(line)
    titles = ["learned from", "judged by"]
    for side in judged:
        titles += [side] + [""] * (SHOWN - 1)
    width = lines[0][0].shape[0] * SCALE
    step, top = width + GAP, GAP + TITLE_PIXELS
    sheet = Image.new("RGB", (step * len(titles) + GAP, step * len(lines) + top), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((GAP + column * step, GAP), title, "black", ImageFont.load_default(TITLE_PIXELS - GAP))
        for row, line in enumerate(lines):
            picture = Image.fromarray(line[column]).resize((width, width), Image.Resampling.NEAREST)
            sheet.paste(picture, (GAP + column * step, top + row * step))
    return sheet.quantize(256)  # a third of the bytes


def rows(found: dict[str, dict[str, list[float]]]) -> Iterator[dict[str, Any]]:
    """The table: a row for each score, with the paired differences of our sides to the script's."""
    ours = [side for side in found if side not in ("initializer", "script")]
    for score, script in found["script"].items():
        row = {"": score, **{side: str(mean_of(values[score])) for side, values in found.items()}}
        for side in ours:
            differences = [b - a for a, b in zip(script, found[side][score], strict=True)]
            row[f"{side} - script"] = f"{mean_of(differences)}, p {paired_p(differences):.3f}"
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", default=str(HELDOUT))
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seeds", type=int, default=1, help="words of each concept")
    parser.add_argument("--holdout", type=int, default=2, help="images of each concept to judge by")
    parser.add_argument("--script-words", type=Path, required=True)
    parser.add_argument("--predictor", type=Path, help="of `textinv predictor fit`")
    parser.add_argument("--predicted-steps", default="0,25", help="0: the predicted words as they are")
    parser.add_argument("--config", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--images", type=int, default=8, help="pictures of each word and prompt")
    parser.add_argument("--grid", type=Path, help="PNG of all words' pictures")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    settings = [f"data.holdout={options.holdout}", *options.set]
    config = JobConfig.load(options.config, settings)
    files = {
        path.name.rpartition("-")[0]: path for path in sorted(options.script_words.glob("*.safetensors"))
    }
    concepts = [
        dataclasses.replace(concept, prompts=(config.scoring.image_prompt.of(concept.learnable_property),))
        for concept in with_seeds(job.concepts_of(options.manifest, config, options.limit), options.seeds)
        if concept.concept_id in files
    ]
    if not concepts:
        raise SystemExit(f"{options.script_words} has no word of a concept of {options.manifest}")
    backbone, scorer = loading.backbone(config), loading.scorer(config)
    judge = loading.judge(config)

    def of_script(concept: Concept) -> Word:
        (word,) = read_words(files[concept.concept_id]).values()
        return Word(concept, rows_of(backbone, word), 0, 0.0)

    sides = {
        "initializer": [Word(one, ConceptTask(one, backbone, config).vectors, 0, 0.0) for one in concepts],
        "script": [of_script(concept) for concept in concepts],
        "ours": learned(concepts, backbone, scorer, config),
    }
    if options.predictor:
        few = config.override(["stopping.rule=none"])
        starts = [predicted_start(one, options.predictor, scorer) for one in concepts]
        for number in map(int, options.predicted_steps.split(",")):
            made = [dataclasses.replace(one, steps=number) for one in starts]
            sides[f"predicted, {number} steps"] = (
                learned(made, backbone, scorer, few)
                if number
                else [Word(one, ConceptTask(one, backbone, few).vectors, 0, 0.0) for one in made]
            )
    drawn = config.override([f"scoring.num_images={options.images}", f"review.images_per_prompt={SHOWN}"])
    kept: Pictures = {}
    judged = {side: judge_each(words, backbone, scorer, judge, drawn, kept) for side, words in sides.items()}
    found = {side: values_of(words) for side, words in judged.items()}
    if options.grid:
        options.grid.parent.mkdir(parents=True, exist_ok=True)
        grid(concepts, judged).save(options.grid, optimize=True)
    steps = {side: [word.step for word in words] for side, words in sides.items() if side != "script"}
    print(f"{len(concepts)} words of each side on {measure.machine_line()}; our steps: {steps}")
    print(measure.table(list(rows(found))))
    print("(mean over concepts, seeds averaged, with its 95 % bootstrap interval; last: paired differences)")
    measure.write_json(
        options.json, {"words": len(concepts), "steps": steps, "scores": found, "table": list(rows(found))}
    )


if __name__ == "__main__":
    main()
