"""Measure mini-sdxl, and what its traits are worth: two encoders that learn, and pooling at the end token.

    python -m training.evaluate_sdxl [--characters 20] [--seeds 1] [--compared 10] [--only ...]
    python -m training.evaluate_sdxl --model build/mini/sdxl/mini-sdxl

As `training.evaluate` does, with the same characters, seeds and scorer. The figures go to evaluation-sdxl.json beside
this file and into the model's README.md; those of another --model into its folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.scoring import Scorer, image_similarity
from training import cards
from training.common import BUILD, MODELS
from training.evaluate import (
    FIRST_SEED,
    HERE,
    OBJECT_PROMPT,
    TRAINING_VIEWS,
    Heldout,
    Judge,
    concept_of,
    judge_characters,
    learn_all,
    measure_generation,
    picked_characters,
)

RECORD = "evaluation-sdxl.json"


class OneEncoder(StableDiffusionXL):
    """Gradients reach one encoder's columns of a word; the other's stay the initializer's."""

    learns: ClassVar[int]

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        if rows is not None:
            parts = [rows[:, encoder.columns] for encoder in self.encoders]
            rows = torch.cat([part if i == self.learns else part.detach() for i, part in enumerate(parts)], 1)
        return super().encode(input_ids, rows, time_ids, learned)


class FirstEncoder(OneEncoder):
    learns = 0


class SecondEncoder(OneEncoder):
    learns = 1


class PooledAtLargestId(StableDiffusionXL):
    """Pools where transformers does for `eos_token_id: 2`: at the largest id, which is the word's last token.

    A tokenizer gives learned tokens the ids after its vocabulary, so that they are larger than the end token's.
    """

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        condition, second = super().encode(input_ids, rows, time_ids, learned), self.encoders[1]
        ids = input_ids[:, second.tokens]
        largest = torch.where(ids < 0, len(second.table) - 1 - ids, ids).argmax(1)
        own = None if rows is None else rows[:, second.columns]
        states = second.run(ids, own).last_hidden_state
        pooled = self.text_encoder_2.text_projection(states[torch.arange(len(ids)), largest])
        return condition._replace(pooled=pooled)


def changed(backbone: StableDiffusionXL, kind: type[StableDiffusionXL]) -> StableDiffusionXL:
    """The same model as another class."""
    return kind(**{field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)})


@dataclasses.dataclass
class Comparison:
    """Learns words of the same characters in several ways, and scores pictures of each."""

    scorer: Scorer
    heldout: Heldout
    config: JobConfig
    identities: list[list[int]]
    seeds: int

    def learn(self, backbone: StableDiffusionXL) -> dict[str, Tensor]:
        concepts = [
            concept_of(
                f"character-{number}-s{seed}", self.pixels(number), False, FIRST_SEED + seed, self.config
            )
            for number in range(len(self.identities))
            for seed in range(self.seeds)
        ]
        return learn_all(backbone, concepts, self.config)[0]

    def score(self, backbone: StableDiffusionXL, words: dict[str, Tensor]) -> np.ndarray:
        """Similarity of pictures of each word to its training images: (characters, seeds)."""
        judge, scores = Judge(backbone, self.scorer, self.config, words, Path()), []
        for number in range(len(self.identities)):
            real = self.scorer.image_features(self.pixels(number))
            prompts = [OBJECT_PROMPT.format(f"<character-{number}-s{seed}>") for seed in range(self.seeds)]
            scores.append([image_similarity(judge.features(prompt), real) for prompt in prompts])
        return np.array(scores)

    def pixels(self, number: int) -> np.ndarray:
        return self.heldout.data.pixels(self.identities[number][:TRAINING_VIEWS])


def compare(comparison: Comparison, backbone: StableDiffusionXL) -> dict[str, Any]:
    """Mean similarity of words learned in each way, and its difference to `both`, paired by character."""
    words = comparison.learn(backbone)
    scores = {"both": comparison.score(backbone, words)}
    misread = changed(backbone, PooledAtLargestId)
    scores["drawn_pooled_at_largest_id"] = comparison.score(misread, words)
    for name, kind in (
        ("first_encoder", FirstEncoder),
        ("second_encoder", SecondEncoder),
        ("pooled_at_largest_id", PooledAtLargestId),
    ):
        way = changed(backbone, kind)
        scores[name] = comparison.score(way, comparison.learn(way))
        print(name, round(float(scores[name].mean()), 4), flush=True)
    return {
        "characters": len(comparison.identities),
        "seeds": comparison.seeds,
        "steps": comparison.config.training.steps,
        "ways": {name: _summary(score.mean(1), scores["both"].mean(1)) for name, score in scores.items()},
    }


def _summary(scores: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Mean over characters, and the difference to `reference` with the standard error of its mean."""
    difference = scores - reference
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return {
        "mean": round(float(scores.mean()), 4),
        "difference": round(float(difference.mean()), 4),
        "error": round(float(error), 4),
        "worse": int((difference < 0).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--characters", type=int, default=20)
    parser.add_argument("--compared", type=int, default=10, help="characters that are learned in every way")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", default="generation,inversion,ways")
    parser.add_argument("--model", type=Path, help="another folder than the bundled model's")
    options = parser.parse_args()
    model = options.model or MODELS / "mini-sdxl"
    record = (options.model or HERE) / RECORD
    pictures = options.model or HERE / "pictures" / "mini-sdxl"

    config = JobConfig.load("mini", ["stopping.rule=none", f"training.steps={options.steps}"])
    heldout, scorer = Heldout(), Scorer.load(str(MODELS / "mini-clip"))
    backbone = load_backbone(str(model))
    assert isinstance(backbone, StableDiffusionXL)

    def inversion() -> dict[str, Any]:
        identities = picked_characters(heldout, options.characters)
        comparison = Comparison(scorer, heldout, config, identities, options.seeds)
        judge = Judge(backbone, scorer, config, comparison.learn(backbone), pictures)
        pixels = {f"character-{number}": comparison.pixels(number) for number in range(len(identities))}
        said = {"characters": len(identities), "seeds": options.seeds, "steps": options.steps}
        return said | judge_characters(judge, heldout, identities, pixels, options.seeds)

    def ways() -> dict[str, Any]:
        identities = picked_characters(heldout, options.compared)
        return compare(Comparison(scorer, heldout, config, identities, options.seeds), backbone)

    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "generation": lambda: measure_generation(backbone, scorer, heldout, config, pictures),
        "inversion": inversion,
        "ways": ways,
    }
    figures: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    for name in options.only.split(","):
        figures[name] = measures[name]()
        print(
            name, json.dumps({k: v for k, v in figures[name].items() if k != "table"}, indent=1), flush=True
        )
        record.write_text(json.dumps(figures, indent=1) + "\n")
    if not options.model:
        curve = [json.loads(line) for line in (BUILD / "sdxl" / "curve.jsonl").read_text().splitlines()]
        figures["curve"] = {"first": curve[0]["heldout"], "last": curve[-1]["heldout"]}
        record.write_text(json.dumps(figures, indent=1) + "\n")
        cards.write_sdxl(figures)


if __name__ == "__main__":
    main()
