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
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.scoring import Scorer, image_similarity
from training import cards_sdxl
from training.common import BUILD, MODELS
from training.evaluate import (
    HERE,
    OBJECT_PROMPT,
    TRAINING_VIEWS,
    Heldout,
    Judge,
    concepts_of,
    judge_characters,
    learn_all,
    measure_generation,
    picked_characters,
)

RECORD = "evaluation-sdxl.json"
MEASURES = ("generation", "inversion", "both", "first_encoder", "second_encoder", "pooled_at_largest_id")


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
        states = second.run(ids, None if rows is None else rows[:, second.columns]).last_hidden_state
        pooled = self.text_encoder_2.text_projection(states[torch.arange(len(ids)), largest])
        return condition._replace(pooled=pooled)


def changed(backbone: StableDiffusionXL, kind: type[StableDiffusionXL]) -> StableDiffusionXL:
    """The same model as another class."""
    return kind(**{field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)})


@dataclasses.dataclass
class Comparison:
    """Learns words of characters, and scores pictures of them."""

    scorer: Scorer
    heldout: Heldout
    config: JobConfig
    identities: list[list[int]]
    seeds: int

    def learn(self, backbone: StableDiffusionXL) -> dict[str, Tensor]:
        pixels = {f"character-{number}": self.pixels(number) for number in range(len(self.identities))}
        concepts = concepts_of(pixels, False, self.seeds, self.config)
        return learn_all(backbone, concepts, self.config)[0]

    def score(self, backbone: StableDiffusionXL, words: dict[str, Tensor]) -> list[float]:
        """Similarity of pictures of each word to its training images, the mean over seeds: one for each character."""
        judge, scores = Judge(backbone, self.scorer, self.config, words, Path()), []
        for number in range(len(self.identities)):
            real = self.scorer.image_features(self.pixels(number))
            prompts = [OBJECT_PROMPT.format(f"<character-{number}-s{seed}>") for seed in range(self.seeds)]
            scores.append(float(np.mean([image_similarity(judge.features(each), real) for each in prompts])))
        return scores

    def pixels(self, number: int) -> np.ndarray:
        return self.heldout.data.pixels(self.identities[number][:TRAINING_VIEWS])


def way(name: str, comparison: Comparison, backbone: StableDiffusionXL) -> dict[str, list[float]]:
    """Scores of words that are learned and drawn in a way that `cards_sdxl.WAYS` names; of `both`, drawn in two."""
    encoders = {"first_encoder": ["clip_l"], "second_encoder": ["clip_g"]}.get(name)
    training = comparison.config.training.model_copy(update={"encoders": encoders})
    comparison = dataclasses.replace(
        comparison, config=comparison.config.model_copy(update={"training": training})
    )
    misread = changed(backbone, PooledAtLargestId)
    learns = misread if name == "pooled_at_largest_id" else backbone
    words = comparison.learn(learns)
    scores = {name: comparison.score(learns, words)}
    if name == "both":
        scores["drawn_pooled_at_largest_id"] = comparison.score(misread, words)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--characters", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--compared", type=int, default=20, help="characters that are learned in every way")
    parser.add_argument("--compared-steps", type=int, default=100)
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--model", type=Path, help="another folder than the bundled model's")
    options = parser.parse_args()
    model = options.model or MODELS / "mini-sdxl"
    record = (options.model or HERE) / RECORD
    pictures = options.model or HERE / "pictures" / "mini-sdxl"

    config = JobConfig.load("mini-sdxl", ["stopping.rule=none", f"training.steps={options.steps}"])
    heldout, scorer = Heldout(), Scorer.load(str(MODELS / "mini-clip"))
    backbone = load_backbone(str(model))
    assert isinstance(backbone, StableDiffusionXL)
    figures: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    for name in options.only.split(","):
        if name == "generation":
            figures[name] = measure_generation(backbone, scorer, heldout, config, pictures)
        elif name == "inversion":
            identities = picked_characters(heldout, options.characters)
            comparison = Comparison(scorer, heldout, config, identities, options.seeds)
            judge = Judge(backbone, scorer, config, comparison.learn(backbone), pictures)
            pixels = {f"character-{number}": comparison.pixels(number) for number in range(len(identities))}
            figures[name] = {"characters": len(identities), "seeds": options.seeds, "steps": options.steps}
            figures[name] |= judge_characters(judge, heldout, identities, pixels, options.seeds)
        else:
            shorter = JobConfig.load(
                "mini-sdxl", ["stopping.rule=none", f"training.steps={options.compared_steps}"]
            )
            identities = picked_characters(heldout, options.compared)
            scores = way(name, Comparison(scorer, heldout, shorter, identities, options.seeds), backbone)
            figures.setdefault("ways", {}).update(scores)
            figures["ways_steps"] = options.compared_steps
        record.write_text(json.dumps(figures, indent=1) + "\n")
    if not options.model:
        curve = [json.loads(line) for line in (BUILD / "sdxl" / "curve.jsonl").read_text().splitlines()]
        figures["curve"] = {
            "samples": curve[-1]["samples"],
            "first": curve[0]["heldout"],
            "last": curve[-1]["heldout"],
        }
        record.write_text(json.dumps(figures, indent=1) + "\n")
        cards_sdxl.write(figures)


if __name__ == "__main__":
    main()
