"""Two learned words in one prompt: has "<character> in the style of <style>" something of both?

    python benchmarks/composition.py OUTPUT [--objects 20] [--samples 8] [--grid docs/composition.png] [--json PATH]

OUTPUT is of a job that learned objects and styles, such as those of `python -m training.heldout --styles`. For each
object with each style three prompts are drawn: both words, the object's alone, the style's alone. Pictures are
compared with the training images of both concepts (mean CLIP cosine over pairs, as clip_image_similarity is).
Composition works where pictures of both words are nearer to the object's images than the style's word alone comes,
*and* nearer to the style's images than the object's word alone comes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from textinv_ray.config.job import JobConfig
from textinv_ray.experiments.ablation_table import interval
from textinv_ray.inversion.evaluation import IMAGE_PROMPTS, LearnedConcept
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.generation import Request, generate
from textinv_ray.inversion.scoring import Scorer, image_similarity
from textinv_ray.inversion.words import rows_of
from textinv_ray.service.batch.evaluate import read_concept
from textinv_ray.service.models import loading
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

BOTH_PROMPT = "a photo of {object} in the style of {style}"
SCALE, LABEL, SHOWN_BOTH = 2, 150, 4


@dataclass(frozen=True, eq=False)
class Drawn:
    """A concept, and what its word alone draws."""

    subject: LearnedConcept
    training: Tensor
    """(m, d) features of the training images"""
    samples: np.ndarray
    """uint8 (n, H, W, 3)"""
    features: Tensor
    """(n, d) of `samples`"""


@dataclass(frozen=True, eq=False)
class Pair:
    """An object in a style."""

    object: Drawn
    style: Drawn
    samples: np.ndarray
    """uint8 (n, H, W, 3), of both words in one prompt"""
    scores: dict[str, float]
    """`<both|object|style>_to_<object|style>`: pictures of which prompt, to whose training images."""

    @property
    def gains(self) -> tuple[float, float]:
        """What the object's word adds to the style's, on the object's images; and the other way round."""
        return (
            self.scores["both_to_object"] - self.scores["style_to_object"],
            self.scores["both_to_style"] - self.scores["object_to_style"],
        )


def subjects(store: Store, kind: str, limit: int | None = None) -> list[LearnedConcept]:
    """The first learned objects or styles of an output, by concept_id."""
    ids = [result.concept_id for result in store.results() if result.learnable_property == kind]
    if not ids:
        raise UserError(f"{store.shown} has no {kind}s: composition needs objects and styles in one output")
    return [read_concept(store, concept_id) for concept_id in ids[:limit]]


class Composer:
    """Draws and scores, with the same seeds for all."""

    def __init__(self, backbone: Backbone, scorer: Scorer, config: JobConfig, samples: int) -> None:
        self._backbone, self._scorer, self._config, self._count = backbone, scorer, config, samples

    def draw(self, prompt: str, *used: LearnedConcept) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        vectors = {subject.placeholder_token: rows_of(self._backbone, subject.word) for subject in used}
        request = Request(prompt, tuple(vectors), count=self._count)
        return generate(self._backbone, vectors, [request], self._config.review)[0]

    def alone(self, subject: LearnedConcept) -> Drawn:
        prompt = IMAGE_PROMPTS[subject.learnable_property].replace("{}", subject.placeholder_token)
        samples = self.draw(prompt, subject)
        training = self._scorer.image_features(subject.images)
        return Drawn(subject, training, samples, self._scorer.image_features(samples))

    def pair(self, one: Drawn, style: Drawn) -> Pair:
        tokens = {"object": one.subject.placeholder_token, "style": style.subject.placeholder_token}
        samples = self.draw(BOTH_PROMPT.format(**tokens), one.subject, style.subject)
        drawn = {
            "both": self._scorer.image_features(samples),
            "object": one.features,
            "style": style.features,
        }
        training = {"object": one.training, "style": style.training}
        scores = {
            f"{prompt}_to_{whose}": image_similarity(features, reference)
            for prompt, features in drawn.items()
            for whose, reference in training.items()
        }
        return Pair(one, style, samples, scores)


def summary(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Means, the gains' 95 % intervals over objects (their styles averaged), and how often composition works."""
    by_object: dict[str, list[tuple[float, float]]] = {}
    for pair in pairs:
        by_object.setdefault(pair.object.subject.placeholder_token, []).append(pair.gains)
    means = np.array([np.mean(gains, axis=0) for gains in by_object.values()])
    gains = np.array([pair.gains for pair in pairs])
    return {
        "pairs": len(pairs),
        "objects": len(by_object),
        "mean": {name: float(np.mean([pair.scores[name] for pair in pairs])) for name in pairs[0].scores},
        "gain_on_object_images": interval(means[:, 0].tolist()),
        "gain_on_style_images": interval(means[:, 1].tolist()),
        "both_gain": float((gains > 0).all(axis=1).mean()),
    }


def text(found: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'pictures of':<16}{'to object images':>20}{'to style images':>20}"]
    for prompt in ("both", "object", "style"):
        cells = [f"{found['mean'][f'{prompt}_to_{whose}']:20.3f}" for whose in ("object", "style")]
        lines.append(f"{prompt + (' words' if prompt == 'both' else ' alone'):<16}" + "".join(cells))
    gains = []
    for name in ("object", "style"):
        mean, _, high = found[f"gain_on_{name}_images"]
        gains.append(f"{mean:+.3f}" + (f" ± {high - mean:.3f}" if high is not None else ""))
    lines.append(f"{'gain':<16}" + "".join(f"{gain:>20}" for gain in gains))
    counts = f"{found['pairs']} pairs of {found['objects']} objects"
    return "\n".join([*lines, f"both gain in {found['both_gain']:.0%} of {counts}"])


def grid(pairs: Sequence[Pair]) -> Image.Image:
    """A row per pair: an image of each concept | each word alone | both words."""
    side = pairs[0].samples.shape[1] * SCALE
    titles = ("object", "style", "object's word", "style's word", "both words")
    sheet = Image.new("RGB", (LABEL + (4 + SHOWN_BOTH) * side + 16, 18 + len(pairs) * side), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [LABEL + column * side + 8 * (column // 2) for column in range(4)]
    lefts += [LABEL + column * side + 16 for column in range(4, 4 + SHOWN_BOTH)]
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left, 3), title, "black")
    for number, pair in enumerate(pairs):
        top, one, style = 18 + number * side, pair.object, pair.style
        draw.text((4, top + side // 2 - 12), one.subject.placeholder_token, "black")
        draw.text((4, top + side // 2), f"in {style.subject.placeholder_token}", "black")
        pictures = [one.subject.images[0], style.subject.images[0]]
        pictures += [one.samples[0], style.samples[0], *pair.samples[:SHOWN_BOTH]]
        for left, picture in zip(lefts, pictures, strict=False):
            tile = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(tile, (left, top))
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output")
    parser.add_argument("--objects", type=int, help="only the first so many")
    parser.add_argument("--samples", type=int, default=8, help="of each prompt")
    parser.add_argument("--grid", type=Path, help="PNG of some pairs")
    parser.add_argument("--rows", type=int, default=8, help="of the grid")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)

    store = Store(options.output)
    job = store.job()
    if job is None:
        raise SystemExit(f"{store.shown} has no job.json; give the output of `textinv invert`")
    config = job.config(store.shown)
    try:
        objects, styles = subjects(store, "object", options.objects), subjects(store, "style")
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    composer = Composer(loading.backbone(config), loading.scorer(config), config, options.samples)
    drawn = [composer.alone(style) for style in styles]
    pairs = []
    for number, subject in enumerate(objects, 1):
        one = composer.alone(subject)
        pairs += [composer.pair(one, style) for style in drawn]
        print(f"drew {subject.placeholder_token} ({number} of {len(objects)})", flush=True)

    whole = {"all": pairs}
    if len(drawn) > 1:
        whole |= {s.subject.placeholder_token: [pair for pair in pairs if pair.style is s] for s in drawn}
    found = {name: summary(part) for name, part in whole.items()}
    for name, lines in found.items():
        print(f"\n{name}\n{text(lines)}")
    if options.json:
        each = [
            {
                "object": pair.object.subject.placeholder_token,
                "style": pair.style.subject.placeholder_token,
                **{name: round(score, 6) for name, score in pair.scores.items()},
            }
            for pair in pairs
        ]
        content = {"output": store.shown, "samples": options.samples, "summary": found, "pairs": each}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.grid:
        options.grid.parent.mkdir(parents=True, exist_ok=True)
        # Evenly over objects, the styles in turn
        shown = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(options.rows, len(pairs))).astype(int)]
        grid(shown).save(options.grid, optimize=True)


if __name__ == "__main__":
    main()
