"""Measure the bundled models and write the figures into their cards.

    python -m training.evaluate [--seeds 3] [--characters 20] [--only vae,scorer,judge,generation,inversion,styles]
    python -m training.evaluate --model build/mini/unet/mini-sd

Everything is measured on characters and styles that no training saw, with seeds that nothing was tuned to on them. The
figures go to evaluation.json beside this file, and from there into both models' README.md; those of another --model,
and its pictures, go into that model's folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.retrieval import Features, retrieval_top1
from textinv_ray.concepts.settings import settings_of
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.encoder_loading import load_encoder
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.scoring import Scorer, image_similarity, text_similarity, without_word
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.manifest.columns import Row
from training import captions as characters
from training import cards
from training.common import BUILD, MODELS, Data, device, save_grid
from training.examples import STYLE_VECTORS

HERE = Path(__file__).parent
FIRST_SEED = 1000
"""Seeds from here on were never used while anything was tuned on these characters and styles."""
SHOWN = 48
"""Captions whose pictures are shown, each below the real one: how many have their eyes, mouth and glasses right?"""
PACK = {"cpu": 8, "cuda": 64}
"""Words that are learned at a time."""
TRAINING_VIEWS = 5
"""Of a held-out character's eight views five are learned from; the others are the ceiling."""
EDITS = ("a photo of a {} on a blue background", "a photo of a {} with sunglasses")
"""What `training.world.EDITED` shows, in its order."""
OBJECT_PROMPT, STYLE_PROMPT = "a photo of a {}", "a painting in the style of {}"
NEW_CHARACTERS = tuple(
    f"a picture of a {noun} with {hair} hair in the style of {{}}"
    for noun in ("person", "character")
    for hair in ("red", "black", "blond", "brown")
)


StyleImages = tuple[np.ndarray, np.ndarray]
"""uint8 (n, H, W, 3): those that a style's word is learned from, and others to compare its pictures with."""


class Heldout:
    """Images of held-out characters (100 x 8 views) and of the held-out styles."""

    def __init__(self) -> None:
        self.data = Data(BUILD / "drawings" / "heldout", effects=False)
        self.characters: dict[int, list[int]] = defaultdict(list)
        self.styles: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(self.data.rows):
            if row["style"] in characters.HELDOUT_STYLES:
                self.styles[row["style"]].append(index)
            else:
                self.characters[row["identity"]].append(index)

    @cached_property
    def edited(self) -> Data:
        """The same characters drawn with EDITED, so many views of each in turn."""
        return Data(BUILD / "drawings" / "edited", effects=False)

    def style_images(self) -> dict[str, StyleImages]:
        """Of each held-out style."""
        split = (
            2 * TRAINING_VIEWS
        )  # Two views of each character in turn: every other one is another character.
        return {
            style: (self.data.pixels(indices[:split:2]), self.data.pixels(indices[split:]))
            for style, indices in sorted(self.styles.items())
        }

    def edited_views(self, identity: int) -> list[list[int]]:
        """Indices in `edited`, a list for each of EDITS."""
        views = [index for index, row in enumerate(self.edited.rows) if row["identity"] == identity]
        count = len(views) // len(EDITS)
        return [views[start : start + count] for start in range(0, len(views), count)]


def measure_vae(model: Path, heldout: Heldout) -> dict[str, Any]:
    """In float32, whatever words are learned in."""
    from training.vae import psnr

    vae = AutoencoderKL.from_pretrained(model / "vae").float().to(device())
    picked = [views[0] for views in heldout.characters.values()]
    return {"psnr_db": round(psnr(vae, heldout.data.pixels(picked)), 2), "images": len(picked)}


def measure_scorer(scorer: Scorer, heldout: Heldout) -> dict[str, Any]:
    """Each view's nearest first view should be its own identity's; each caption's five nearest images hold its own."""
    identities = list(heldout.characters.values())
    features = scorer.image_features(heldout.data.pixels([i for views in identities for i in views]))
    features = features.view(len(identities), -1, features.shape[-1])
    own = torch.arange(len(identities), device=features.device)
    hits = [(features[:, view] @ features[:, 0].T).argmax(1) == own for view in range(1, features.shape[1])]
    texts = scorer.text_features(
        [characters.full_caption(heldout.data.rows[views[0]]) for views in identities]
    )
    return {
        "identities": len(identities),
        "same_identity_top1": round(float(torch.stack(hits).float().mean()), 4),
        "text_image_top5": round(top5(texts, features[:, 0]), 4),
    }


def measure_judge(judge: Encoder, heldout: Heldout) -> dict[str, Any]:
    """Views that find their own identity: one by one among first views, and five against the mean of three others."""
    identities = list(heldout.characters.values())
    features = judge.image_features(heldout.data.pixels([i for views in identities for i in views]))
    features = features.view(len(identities), -1, features.shape[-1])
    own = torch.arange(len(identities), device=features.device)
    hits = [(features[:, view] @ features[:, 0].T).argmax(1) == own for view in range(1, features.shape[1])]
    views = features.cpu().numpy()
    split = views[:, :TRAINING_VIEWS], views[:, TRAINING_VIEWS:]
    top1 = retrieval_top1([Features.of(*of_one) for of_one in zip(*split, strict=True)])
    return {
        "identities": len(identities),
        "same_identity_top1": round(float(torch.stack(hits).float().mean()), 4),
        "retrieval_top1": round(float(np.mean(top1)), 4),
    }


def top5(texts: Tensor, images: Tensor) -> float:
    """Share of texts (n, d) with their own image among the five nearest of (n, d)."""
    nearest = (texts @ images.T).topk(5, dim=1).indices
    return float((nearest == torch.arange(len(texts), device=nearest.device)[:, None]).any(1).float().mean())


def measure_generation(
    backbone: Backbone, scorer: Scorer, heldout: Heldout, config: JobConfig, pictures: Path
) -> dict[str, Any]:
    rows = [heldout.data.rows[views[0]] for views in heldout.characters.values()]
    captions = [characters.full_caption(row) for row in rows]
    seeds = [FIRST_SEED + number for number in range(len(rows))]
    drawn = sample_images(backbone, {}, captions, seeds, config.review)
    show = np.linspace(0, len(rows) - 1, SHOWN).astype(int)
    real = heldout.data.pixels([list(heldout.characters.values())[i][0] for i in show])
    lines = [slice(start, start + 12) for start in range(0, SHOWN, 12)]
    sheet = np.concatenate([part for line in lines for part in (real[line], drawn[show[line]])])
    save_grid(pictures / "generation.png", sheet, 12)
    return {
        "captions": len(rows),
        "text_image_top5": round(top5(scorer.text_features(captions), scorer.image_features(drawn)), 4),
    }


def concept_of(name: str, images: np.ndarray, style: bool, seed: int, config: JobConfig) -> Concept:
    """A concept as a job with this configuration makes it of a manifest's row."""
    row: Row = {
        "concept_id": name,
        "images": [name],
        "initializer_token": "drawing" if style else "character",
        "learnable_property": "style" if style else "object",
        "seed": seed,
    }
    return Concept(
        **vars(settings_of(row, config)),
        images=images[:, None],
        image_uris=(),
        fingerprint=name,
        row_fingerprint=name,
        state_fingerprint=name,
    )


def learn_all(
    backbone: Backbone, concepts: list[Concept], config: JobConfig
) -> tuple[dict[str, Tensor], float]:
    """Learn concepts in packs, refilled as they finish; vectors by placeholder token and seconds per concept."""
    started, waiting, learned = time.perf_counter(), list(reversed(concepts)), {}
    pack = Pack(backbone, config, PACK[device().type])
    while waiting or pack.tasks:
        while pack.free and waiting:
            pack.add(ConceptTask(waiting.pop(), backbone, config))
        for task in pack.step():
            if task.failed:
                raise SystemExit(f"{task.concept.concept_id} failed: {task.failed}")
            learned[task.concept.placeholder_token] = task.vectors
            print(f"learned {task.concept.concept_id} ({len(learned)} of {len(concepts)})", flush=True)
    return learned, (time.perf_counter() - started) / len(concepts)


@dataclasses.dataclass
class Judge:
    """Samples prompts and scores them against images."""

    backbone: Backbone
    scorer: Scorer
    config: JobConfig
    words: dict[str, Tensor]
    pictures: Path

    def samples(self, prompt: str, count: int = 8) -> np.ndarray:
        used = {token: vectors for token, vectors in self.words.items() if token in prompt}
        seeds = [FIRST_SEED + number for number in range(count)]
        return sample_images(self.backbone, used, [prompt] * count, seeds, self.config.review)

    def features(self, prompt: str, count: int = 8) -> Tensor:
        return self.scorer.image_features(self.samples(prompt, count))


def picked_characters(heldout: Heldout, count: int) -> list[list[int]]:
    """The views of so many characters, taken evenly from all styles."""
    every = [views for _, views in sorted(heldout.characters.items())]
    return every[:: max(1, len(every) // count)][:count]


def measure_inversion(
    backbone: Backbone,
    scorer: Scorer,
    heldout: Heldout,
    config: JobConfig,
    pictures: Path,
    count: int,
    seeds: int,
) -> dict[str, Any]:
    """Learned words against the initializer, a colour caption, the full caption and other real images."""
    identities = picked_characters(heldout, count)
    pixels = {
        f"character-{number}": heldout.data.pixels(views[:TRAINING_VIEWS])
        for number, views in enumerate(identities)
    }
    concepts = concepts_of(pixels, False, seeds, config)
    words, seconds = learn_all(backbone, concepts, config)
    judge = Judge(backbone, scorer, config, words, pictures)
    result = {
        "characters": len(identities),
        "seeds": seeds,
        **learning_of(concepts[0], config),
        "seconds_per_concept": round(seconds, 1),
        "pack": PACK[device().type],
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }
    return result | judge_characters(judge, heldout, identities, pixels, seeds)


def measure_styles(
    backbone: Backbone,
    scorer: Scorer,
    styles: Mapping[str, StyleImages],
    config: JobConfig,
    pictures: Path,
    seeds: int,
    per_prompt: int = 4,
) -> dict[str, Any]:
    """Words of styles, by the pictures of new characters that they draw, so many of each prompt."""
    pixels = {f"style-{style.lower()}": images for style, (images, _) in styles.items()}
    concepts = concepts_of(pixels, True, seeds, config)
    words, _ = learn_all(backbone, concepts, config)
    judge = Judge(backbone, scorer, config, words, pictures)
    learning = {"seeds": seeds, **learning_of(concepts[0], config)}
    return learning | judge_styles(judge, styles, seeds, per_prompt)


def concepts_of(
    pixels: Mapping[str, np.ndarray], style: bool, seeds: int, config: JobConfig
) -> list[Concept]:
    """A concept for each name and seed."""
    return [
        concept_of(f"{name}-s{seed}", images, style, FIRST_SEED + seed, config)
        for name, images in pixels.items()
        for seed in range(seeds)
    ]


def learning_of(concept: Concept, config: JobConfig) -> dict[str, Any]:
    """What a card says of how words were learned."""
    names = ("num_vectors", "steps", "batch_size", "optimizer", "learning_rate")
    of_concept = {name: getattr(concept, name) for name in names}
    return {**of_concept, "lr_schedule": concept.lr_schedule or config.training.lr_schedule}


def judge_characters(
    judge: Judge, heldout: Heldout, identities: list[list[int]], pixels: dict[str, np.ndarray], seeds: int
) -> dict[str, Any]:
    every = list(heldout.characters.values())
    gallery = torch.stack(
        [centre(judge.scorer, heldout.data.pixels(views[TRAINING_VIEWS:])) for views in every]
    )
    initial = judge.features(OBJECT_PROMPT.format("character"))
    initial_edits = [judge.features(edit.format("character")) for edit in EDITS]
    edit_texts = judge.scorer.text_features([without_word(edit) for edit in EDITS])
    table, sheet = [], []
    for number, views in enumerate(identities):
        row = heldout.data.rows[views[0]]
        reference = judge.scorer.image_features(pixels[f"character-{number}"])
        others = judge.scorer.image_features(heldout.data.pixels(views[TRAINING_VIEWS:]))
        tokens = [f"<character-{number}-s{seed}>" for seed in range(seeds)]
        drawn = [judge.samples(OBJECT_PROMPT.format(token)) for token in tokens]
        features = [judge.scorer.image_features(images) for images in drawn]
        learned = [image_similarity(images, reference) for images in features]
        nearest = (torch.cat(features) @ gallery.T).argmax(1)
        edits = [
            [
                text_similarity(judge.features(edit.format(token), 4), text)
                for edit, text in zip(EDITS, edit_texts, strict=True)
            ]
            for token in tokens
        ]
        table.append(
            {
                "style": row["style"],
                "learned": float(np.mean(learned)),
                "learned_by_seed": learned,
                "nearest_own": float((nearest == every.index(views)).float().mean()),
                "initializer": image_similarity(initial, reference),
                "colour_caption": image_similarity(judge.features(characters.colour_caption(row)), reference),
                "full_caption": image_similarity(judge.features(characters.full_caption(row)), reference),
                "ceiling": image_similarity(others, reference),
                "edits": np.mean(edits, 0).tolist(),
                "edits_drawn": [
                    text_similarity(judge.scorer.image_features(heldout.edited.pixels(drawings)), text)
                    for drawings, text in zip(heldout.edited_views(row["identity"]), edit_texts, strict=True)
                ],
            }
        )
        print(
            {key: round(value, 3) for key, value in table[-1].items() if isinstance(value, float)}, flush=True
        )
        sheet += [
            pixels[f"character-{number}"][:4],
            drawn[0][:4],
            judge.samples(EDITS[0].format(tokens[0]), 2),
            judge.samples(EDITS[1].format(tokens[0]), 2),
        ]
    save_grid(judge.pictures / "inversion.png", np.concatenate(sheet), 12)
    column = {
        key: np.array([line[key] for line in table])
        for key in ("learned", "initializer", "colour_caption", "full_caption", "ceiling")
    }
    closed = (column["learned"] - column["initializer"]) / (column["ceiling"] - column["initializer"])
    of_initializer = [
        text_similarity(features, text) for features, text in zip(initial_edits, edit_texts, strict=True)
    ]
    of_learned, of_drawn = (
        np.mean([line[key] for line in table], 0).tolist() for key in ("edits", "edits_drawn")
    )
    return {
        "mean": {key: round(float(value.mean()), 4) for key, value in column.items()},
        "beats_initializer": round(float((column["learned"] > column["initializer"]).mean()), 4),
        "beats_colour_caption": round(float((column["learned"] > column["colour_caption"]).mean()), 4),
        "beats_full_caption": round(float((column["learned"] > column["full_caption"]).mean()), 4),
        "closed_distance": round(float(closed.mean()), 4),
        "nearest_own": round(float(np.mean([line["nearest_own"] for line in table])), 4),
        "edits": {
            edit: {"learned": round(a, 4), "initializer": round(b, 4), "drawn": round(c, 4)}
            for edit, a, b, c in zip(EDITS, of_learned, of_initializer, of_drawn, strict=True)
        },
        "table": table,
    }


def judge_styles(
    judge: Judge, styles: Mapping[str, StyleImages], seeds: int, per_prompt: int
) -> dict[str, Any]:
    """Share of pictures of new characters whose nearest style centre is that of the learned style.

    The others are those of the styles in training. The word of a style and a seed is `<style-NAME-sSEED>`.
    """
    training = Data(BUILD / "drawings", effects=False)
    by_style: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(training.rows):
        if len(by_style[row["style"]]) < 60:
            by_style[row["style"]].append(index)
    others = torch.stack([centre(judge.scorer, training.pixels(indices)) for indices in by_style.values()])
    shares, similarities, sheet = {}, {}, []
    for style, (learned_from, compared_with) in styles.items():
        own = centre(judge.scorer, compared_with)
        hits, similarity, drawn = [], [], np.zeros(0)
        for seed in range(seeds):
            prompts = [
                prompt.format(f"<style-{style.lower()}-s{seed}>")
                for prompt in (STYLE_PROMPT, *NEW_CHARACTERS)
            ]
            drawn = np.concatenate([judge.samples(prompt, per_prompt) for prompt in prompts])
            features = judge.scorer.image_features(drawn)
            hits.append((features @ own > (features @ others.T).max(1).values).float().mean())
            similarity.append((features @ own).mean())
        shares[style] = round(float(torch.stack(hits).mean()), 4)
        similarities[style] = round(float(torch.stack(similarity).mean()), 4)
        sheet += [learned_from[:4], drawn[::per_prompt][:8]]
    save_grid(judge.pictures / "styles.png", np.concatenate(sheet), 12)
    return {"style_share": shares, "style_similarity": similarities}


def centre(scorer: Scorer, pixels: np.ndarray) -> Tensor:
    return torch.nn.functional.normalize(scorer.image_features(pixels).mean(0), dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--characters", type=int, default=20)
    parser.add_argument("--only", default="vae,scorer,judge,generation,inversion,styles")
    parser.add_argument("--model", type=Path, help="another folder than the bundled model's")
    options = parser.parse_args()
    wanted = options.only.split(",")
    model = options.model or MODELS / "mini-sd"
    record = (options.model or HERE) / "evaluation.json"
    pictures = options.model or HERE / "pictures"

    # So that the figures of all versions of the model are of the same learning
    config, heldout = JobConfig.load("mini", ["stopping.rule=none", "training.steps=200"]), Heldout()
    scorer = Scorer.load(str(MODELS / "mini-clip"))
    figures: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    backbone = load_backbone(str(model))
    measures = {
        "vae": lambda: measure_vae(model, heldout),
        "scorer": lambda: measure_scorer(scorer, heldout),
        "judge": lambda: measure_judge(load_encoder(str(MODELS / "mini-judge")), heldout),
        "generation": lambda: measure_generation(backbone, scorer, heldout, config, pictures),
        "inversion": lambda: measure_inversion(
            backbone, scorer, heldout, config, pictures, options.characters, options.seeds
        ),
        "styles": lambda: measure_styles(
            backbone,
            scorer,
            heldout.style_images(),
            config.override([f"training.num_vectors={STYLE_VECTORS}"]),
            pictures,
            options.seeds,
        ),
    }
    for name in wanted:
        figures[name] = measures[name]()
        print(
            name, json.dumps({k: v for k, v in figures[name].items() if k != "table"}, indent=1), flush=True
        )
        record.write_text(json.dumps(figures, indent=1) + "\n")
    if not options.model:
        cards.write(figures)


if __name__ == "__main__":
    main()
