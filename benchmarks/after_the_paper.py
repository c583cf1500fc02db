"""Do later ideas beat plain textual inversion at equal time?

    python benchmarks/after_the_paper.py build/heldout.parquet --limit 20 --seeds 3 -o outputs/after-the-paper
        [--methods text-encoder,clip-word,clip-words,per-layer] [--at 0.25,1] [--config mini] [--set training.steps=50]

    base           what the configuration says: starts from the initializer, one vector
    text-encoder   cross-initialisation (Pang et al. 2023): starts from the text encoder's output for the initializer
    clip-word      a CLIP-similarity warm start: starts from the word of the vocabulary whose "a photo of a ..." is
                   nearest to the images by the scorer's CLIP. (Descent on CLIP's loss itself needs a CLIP that shares
                   the diffusion model's embedding table; the bundled scorer doesn't, and a manifest may name any)
    clip-words     the same with the mean of the CLIP_WORDS nearest words
    per-layer      extended textual inversion (Voynov et al. 2023, "P+"): a vector for each cross-attention layer

Equal time: `base` takes the configured steps; the others take as many as fit into its time, by the seconds of a
start and of a step that are measured here first, in turns. What is computed once for all concepts (CLIP's features of
the vocabulary) is reported and not charged. Every method is scored after the shares --at of its steps, as jobs
are (inversion/review.py). One process, no Ray; the same command goes on where it was stopped.

    OUTPUT/budget.json     steps and measured seconds of each method
    OUTPUT/scores.jsonl    a line per method, concept, seed and share
    OUTPUT/table.parquet   means with 95 % intervals, differences to base paired by concept and seed (ablation_table.py)
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.settings import concept_seed
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation_table
from textinv_ray.experiments.ablation_table import Score
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.condition import Condition
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.review import Subject, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import concept_of
from textinv_ray.service.models import loading, sources

BASE = "base"
METHODS = (BASE, "text-encoder", "clip-word", "clip-words", "per-layer")
CLIP_WORDS = 5
CLIP_PROMPT = "a photo of a {}"
DEFAULT_PACK = 4

Run = tuple[str, str]
"""(concept_id of the manifest, number of the seed)"""


class LayerSlice:
    """The processor of one cross-attention layer: it attends to its own part of the hidden states."""

    def __init__(self, processor: Any, layer: int, layers: int) -> None:
        self._processor, self._layer, self._layers = processor, layer, layers

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *rest: Any, **options: Any
    ) -> Tensor:
        """encoder_hidden_states: (B, layers * L, D)."""
        own = encoder_hidden_states.chunk(self._layers, dim=1)[self._layer]
        return self._processor(attention, hidden_states, own, *rest, **options)


class PerLayerBackbone(StableDiffusion):
    """A model in which a word has a vector for each cross-attention layer: Voynov et al. 2023, "P+".

    Such a word is one of `layers` vectors everywhere else. Here the prompt that layer l reads has only vector l of each
    word in it: a word takes one token, and prompts are encoded once per layer.
    """

    layers: int = 1
    """Number of cross-attention layers."""

    @classmethod
    def of(cls, backbone: Backbone) -> PerLayerBackbone:
        """Takes the model over: give one that nothing else uses."""
        names = [field.name for field in dataclasses.fields(StableDiffusion)]
        made = cls(**{name: getattr(backbone, name) for name in names})
        processors = made.unet.attn_processors
        cross = [name for name in processors if ".attn2." in name]
        slices = {n: LayerSlice(processors[n], layer, len(cross)) for layer, n in enumerate(cross)}
        made.unet.set_attn_processor({**processors, **slices})
        made.layers = len(cross)
        return made

    def encode(
        self,
        input_ids: Tensor,
        rows: Tensor | None = None,
        time_ids: Tensor | None = None,
        learned: Collection[str] | None = None,
    ) -> Condition:
        """(B, layers * L, D). In `input_ids` words have all their vectors, and `rows` starts with a word's first."""
        by_layer = torch.cat([self.read_by(layer, input_ids) for layer in range(self.layers)])
        return Condition(torch.cat(super().encode(by_layer, rows).hidden_states.chunk(self.layers), dim=1))

    def read_by(self, layer: int, input_ids: Tensor) -> Tensor:
        """The prompts that a layer reads: int64 (B, L), the words' other vectors left out and padding behind."""
        vector = (-1 - input_ids) % self.layers
        kept = (input_ids >= 0) | (vector == layer)
        order = (~kept).int().argsort(dim=1, stable=True)
        moved = input_ids.gather(1, order)
        return torch.where(kept.gather(1, order), moved, self.tokenizer.pad_token_id)


class ClipWords:
    """The words of the diffusion model's vocabulary that are nearest to images by CLIP."""

    def __init__(self, backbone: Backbone, scorer: Scorer) -> None:
        self._backbone, self._scorer = backbone, scorer

    @cached_property
    def _vocabulary(self) -> tuple[list[str], Tensor]:
        """Whole words of letters, and (words, d) features of each in CLIP_PROMPT."""
        tokens = self._backbone.encoders[0].tokenizer.get_vocab()
        whole = [token.removesuffix("</w>") for token in tokens if token.endswith("</w>")]
        known = sorted(word for word in whole if word.isalpha() and len(word) > 1)
        features = [
            self._scorer.text_features([CLIP_PROMPT.format(word) for word in known[start : start + 256]])
            for start in range(0, len(known), 256)
        ]
        return known, torch.cat(features)

    def nearest(self, concept: Concept, count: int) -> list[str]:
        known, features = self._vocabulary
        mean = self._scorer.image_features(concept.images[:, 0]).mean(dim=0)
        return [known[index] for index in (features @ mean).topk(count).indices.tolist()]


@dataclasses.dataclass
class Laboratory:
    """Models, and how each method makes a concept."""

    config: JobConfig
    backbone: Backbone
    per_layer: PerLayerBackbone
    scorer: Scorer
    clip: ClipWords

    @classmethod
    def load(cls, config: JobConfig) -> Laboratory:
        backbone, scorer = loading.backbone(config), loading.scorer(config)
        per_layer = PerLayerBackbone.of(loading.backbone(config))
        return cls(config, backbone, per_layer, scorer, ClipWords(backbone, scorer))

    def backbone_of(self, method: str) -> Backbone:
        return self.per_layer if method == "per-layer" else self.backbone

    def start(self, method: str, concept: Concept) -> Concept:
        """The concept as a method learns it."""
        if method == "text-encoder":
            return _starting_at(concept, "encoder", encoded(self.backbone, concept.initializer_token))
        if method == "clip-word":
            (word,) = self.clip.nearest(concept, 1)
            return dataclasses.replace(concept, initializer_token=word)
        if method == "clip-words":
            nearest = self.clip.nearest(concept, CLIP_WORDS)
            vectors = torch.cat([self.backbone.encoders[0].token_embeddings(word) for word in nearest])
            return _starting_at(concept, "clip", vectors)  # at the mean of them, as for a phrase
        if method == "per-layer":
            return dataclasses.replace(concept, num_vectors=self.per_layer.layers)
        return concept

    def budget(self, methods: Sequence[str], concepts: Sequence[Concept], seconds: float) -> dict[str, Any]:
        """Steps of each method in the time of base's, from the medians of measurements taken in turns.

        Methods on the same backbone take the same steps: their seconds are measured together.
        """
        once = (
            _seconds(lambda: self.clip.nearest(concepts[0], 1)) if any("clip" in m for m in methods) else 0.0
        )
        packs = {}
        for method in methods:
            if id(self.backbone_of(method)) not in packs:
                endless = [dataclasses.replace(concept, steps=100_000) for concept in concepts]
                packs[id(self.backbone_of(method))] = pack = self.pack(method)
                for concept in endless[: pack.size]:
                    pack.add(self.task(method, concept))
                pack.step()
        starts: dict[str, list[float]] = {method: [] for method in methods}
        steps: dict[int, list[float]] = {key: [] for key in packs}
        began = time.perf_counter()
        while time.perf_counter() - began < seconds or len(starts[BASE]) < 3:
            concept = concepts[len(starts[BASE]) % len(concepts)]
            for method in methods:
                starts[method].append(_seconds(functools.partial(self.task, method, concept)))
            for key, pack in packs.items():
                steps[key].append(_seconds(pack.step) / len(pack.tasks))
        start = {method: statistics.median(values) for method, values in starts.items()}
        step = {m: statistics.median(steps[id(self.backbone_of(m))]) for m in methods}
        whole = start[BASE] + self.config.training.steps * step[BASE]
        return {
            method: {
                "steps": max(1, round((whole - start[method]) / step[method])),
                "seconds_to_start": start[method],
                "seconds_per_step": step[method],
                "seconds_once": once if "clip" in method else 0.0,
            }
            for method in methods
        }

    def task(self, method: str, concept: Concept) -> ConceptTask:
        return ConceptTask(self.start(method, concept), self.backbone_of(method), self.config)

    def pack(self, method: str) -> Pack:
        size = self.config.pack.size
        return Pack(self.backbone_of(method), self.config, DEFAULT_PACK if size == "auto" else size)

    def learn(
        self, method: str, concepts: Sequence[Concept], at: Sequence[tuple[int, str]]
    ) -> Iterator[tuple[Concept, str, Tensor]]:
        """(concept, share, vectors) whenever a concept has taken the step of a pair (step, share)."""
        pack, waiting = self.pack(method), list(reversed(concepts))
        while waiting or pack.tasks:
            while pack.free and waiting:
                pack.add(self.task(method, waiting.pop()))
            tasks = list(pack.tasks)
            pack.step()
            for task in tasks:
                if task.failed:
                    raise SystemExit(f"{method}: {task.concept.concept_id} failed: {task.failed}")
                for step, share in at:
                    if step == task.step:
                        yield task.concept, share, task.vectors

    def score(self, method: str, concept: Concept, vectors: Tensor) -> tuple[float, float]:
        """(reconstruction, editability), as jobs score."""
        scored = dataclasses.replace(concept, prompts=())
        (found,) = review(self.backbone_of(method), self.scorer, [Subject(scored, vectors)], self.config)
        if found.clip_image_similarity is None or found.clip_text_similarity is None:
            raise SystemExit("nothing was scored: the configuration has no prompts to score")
        return found.clip_image_similarity, found.clip_text_similarity


def _starting_at(concept: Concept, name: str, vectors: Tensor) -> Concept:
    initial = {"clip_l": tuple(map(tuple, vectors.tolist()))}
    return dataclasses.replace(concept, init_from=name, initializer_token="", initial_vectors=initial)


@torch.no_grad()
def encoded(backbone: Backbone, text: str) -> Tensor:
    """The text encoder's output at the tokens of `text`: (tokens, D)."""
    count = len(backbone.encoders[0].token_embeddings(text))
    ids = words.tokenize(backbone, [text]).to(backbone.device)
    return backbone.encode(ids).hidden_states[0, 1 : 1 + count].to(backbone.word_dtype)


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def read_concepts(uri: str, config: JobConfig, seeds: int, limit: int | None) -> dict[Run, Concept]:
    """Every concept of a manifest with every seed, as `textinv ablate` has them. Captions are left out."""
    source, facts = Manifest.open(uri), sources.facts(config.model)
    checks.check(source, config)
    found = {}
    for row in itertools.islice(source.rows(), limit):
        row.pop("captions", None)
        concept = concept_of(row, config, source.base, facts)
        for seed in range(seeds):
            number = concept_seed(config.training.seed + seed, concept.concept_id)
            found[concept.concept_id, str(seed)] = dataclasses.replace(
                concept, concept_id=f"{concept.concept_id}.{seed}", seed=number
            )
    return found


class Notes:
    """scores.jsonl: what was scored so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def has(self, method: str, run: Run, share: str) -> bool:
        wanted = (method, *run, share)
        return any(
            (line["method"], line["concept"], line["seed"], line["share"]) == wanted for line in self.lines
        )

    def add(self, method: str, run: Run, share: str, scores: tuple[float, float]) -> None:
        (concept, seed), (image, text) = run, scores
        line = {"method": method, "concept": concept, "seed": seed, "share": share}
        self.lines.append({**line, "image": round(image, 6), "text": round(text, 6)})
        with open(self._path, "a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        print(*self.lines[-1].values(), flush=True)

    def tables(self) -> dict[str, pa.Table]:
        """A table for each share of the time."""
        found = {}
        for share in dict.fromkeys(line["share"] for line in self.lines):
            scores = [
                Score("variant", line["method"], line["concept"], line["seed"], line["image"], line["text"])
                for line in sorted(self.lines, key=lambda line: METHODS.index(line["method"]))
                if line["share"] == share
            ]
            found[share] = ablation_table.table(scores, BASE)
        return found


def compare(
    laboratory: Laboratory,
    concepts: dict[Run, Concept],
    steps: dict[str, int],
    shares: Sequence[str],
    notes: Notes,
) -> None:
    """Learns and scores what isn't noted yet, a method after the other. `steps`: by method."""
    runs = {concept.concept_id: run for run, concept in concepts.items()}
    for method, count in steps.items():
        waiting = [
            dataclasses.replace(concept, steps=count)
            for run, concept in concepts.items()
            if not all(notes.has(method, run, share) for share in shares)
        ]
        at = [(max(1, round(float(share) * count)), share) for share in shares]
        for concept, share, vectors in laboratory.learn(method, waiting, at):
            run = runs[concept.concept_id]
            if not notes.has(method, run, share):
                notes.add(method, run, share, laboratory.score(method, concept, vectors))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/after-the-paper"))
    parser.add_argument("--methods", default=",".join(METHODS[1:]), help="base is always among them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="only the first so many concepts")
    parser.add_argument("--at", default="0.25,1", help="shares of the time after which words are scored")
    parser.add_argument(
        "--measure", type=float, default=30.0, help="seconds of measuring how long steps take"
    )
    parser.add_argument("--config")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args(arguments)
    methods = [BASE, *(name for name in options.methods.split(",") if name != BASE)]
    if unknown := set(methods) - set(METHODS):
        parser.error(f"no method {', '.join(sorted(unknown))} (known: {', '.join(METHODS)})")

    config = JobConfig.load(options.config, ["stopping.rule=none", "training.style={}", *options.overrides])
    concepts = read_concepts(options.manifest, config, options.seeds, options.limit)
    laboratory = Laboratory.load(config)
    options.output.mkdir(parents=True, exist_ok=True)
    budget_file = options.output / "budget.json"
    if not budget_file.exists():
        measured = laboratory.budget(methods, list(concepts.values()), options.measure)
        budget_file.write_text(json.dumps(measured, indent=1) + "\n")
    budget = json.loads(budget_file.read_text())
    if missing := [name for name in methods if name not in budget]:
        parser.error(f"{budget_file} was measured without {', '.join(missing)}: give another output")
    for method in methods:
        print(method, json.dumps(budget[method]), flush=True)

    notes = Notes(options.output / "scores.jsonl")
    steps = {method: budget[method]["steps"] for method in methods}
    compare(laboratory, concepts, steps, options.at.split(","), notes)
    found = notes.tables()
    for share, table in found.items():
        print(f"\nafter {float(share):.0%} of the time\n{ablation_table.text(table, BASE)}")
    whole = [
        table.append_column("share", pa.array([float(share)] * len(table))) for share, table in found.items()
    ]
    pq.write_table(pa.concat_tables(whole), options.output / "table.parquet")


if __name__ == "__main__":
    main()
