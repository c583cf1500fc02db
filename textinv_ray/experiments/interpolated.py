"""Words between learned words and their initializers, scored as the learned words are: a dial after learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments.ablation_table import Score
from textinv_ray.inversion import words
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.review import Subject, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.models import loading
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError


@dataclass(frozen=True)
class Models:
    """What pictures are made and scored by."""

    backbone: Backbone
    scorer: Scorer
    judge: Encoder | None
    """The encoder of `scoring.judge`."""

    @classmethod
    def load(cls, config: JobConfig) -> Models:
        """Raises UserError when one can't be loaded."""
        return cls(loading.backbone(config), loading.scorer(config), loading.judge(config))


def parse(text: str) -> list[float]:
    """Shares such as "0.15,0.3", ascending, each once. Raises UserError unless all lie between 0 and 1."""
    try:
        shares = sorted({float(share) for share in text.split(",")})
    except ValueError:
        raise UserError(
            f"--towards-initializer: {text!r} is not a list of numbers such as 0.15,0.3"
        ) from None
    if not all(0 < share < 1 for share in shares):
        raise UserError(f"--towards-initializer: {text!r}: give numbers between 0 and 1")
    return shares


def scores(
    store: Store,
    concepts: Sequence[Concept],
    runs: Mapping[tuple[str, str], str],
    shares: Sequence[float],
    models: Models,
    config: JobConfig,
) -> list[Score]:
    """Scores of each run's word at each share of the way back to its initializer (see `concepts.interpolation`).

    runs: (concept_id in the source manifest, number of the run) -> concept_id of the run in the output.
    concepts: of the source. Raises UserError when a word or its initial vectors are missing or damaged.
    """
    if not shares:
        return []
    lexicon, found = Lexicon([store.uri]), []
    tokens = {result.concept_id: result.placeholder_token for result in store.results()}
    for concept in concepts:
        shown = dataclasses.replace(concept, prompts=())  # no samples but those that are scored
        moved = [
            (share, seed, f"<{tokens[run].strip('<>')}:{1 - share:g}>")
            for share in shares
            for (concept_id, seed), run in runs.items()
            if concept_id == concept.concept_id
        ]
        subjects = [
            Subject(shown, words.rows_of(models.backbone, lexicon.word(mixture))) for _, _, mixture in moved
        ]
        reviews = review(models.backbone, models.scorer, subjects, config, judge=models.judge)
        for (share, seed, _), made in zip(moved, reviews, strict=True):
            image, text = made.clip_image_similarity, made.clip_text_similarity
            if image is not None and text is not None:
                name = f"{share:g} towards the initializer"
                judge = made.judge_similarity
                found.append(Score("between", name, concept.concept_id, seed, image, text, judge=judge))
    return sorted(found, key=lambda score: float(score.name.partition(" ")[0]))
