"""An ablation: variants x concepts x seeds as one manifest through the same service, then a table and a plot.

    OUTPUT/
      ablation_manifest.parquet    a row per run, such as rex.progressive.0
      concepts/ ...                what every job leaves (store.py)
      ablation.parquet             a row per variant and reference (ablation_table.py)
      ablation.png                 reconstruction against editability, as in Gal et al. 2022, section 5

A run is a concept like any other: done ones are skipped, interrupted ones resumed, all share packs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from textinv_ray.concepts import images, prepare, settings, templates
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation_table
from textinv_ray.experiments.ablation_table import Score
from textinv_ray.inversion import sampling, scoring
from textinv_ray.manifest import checks
from textinv_ray.manifest.columns import COLUMNS, Row, schema
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import run
from textinv_ray.service.models import loading, sources
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.mirror import MLflowMirror
from textinv_ray.service.tracking.uri import resolve_uri
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact_text
from textinv_ray.util.text import nearest

logger = logging.getLogger(__name__)

BASE = "base"
MANIFEST, TABLE, PLOT = "ablation_manifest.parquet", "ablation.parquet", "ablation.png"
CONCEPT_TAG, VARIANT_TAG, SEED_TAG = "ablation_concept", "ablation_variant", "ablation_seed"

Columns = dict[str, Any]


def _progressive(steps: int, learning_rate: float) -> Columns:
    # The paper's 2000 and 4000 of 5000 steps
    return {"vectors_added_at": [min(max(1, round(share * steps)), steps - 1) for share in (0.4, 0.8)]}


VARIANTS: dict[str, Callable[[int, float], Columns]] = {
    BASE: lambda steps, rate: {},
    "two-vectors": lambda steps, rate: {"num_vectors": 2},
    "three-vectors": lambda steps, rate: {"num_vectors": 3},
    "progressive": _progressive,
    "regularized": lambda steps, rate: {"regularization_weight": 0.01},
    "per-image": lambda steps, rate: {"per_image_probability": 0.25},
    # The paper's 1e-4 and 2e-2 beside 5e-3
    "low-rate": lambda steps, rate: {"learning_rate": rate / 50},
    "high-rate": lambda steps, rate: {"learning_rate": rate * 4},
    "captions": lambda steps, rate: {},
    "vocabulary-mean": lambda steps, rate: {"init_from": "vocabulary_mean"},
    "auto": lambda steps, rate: {"init_from": "auto"},
    "norm-rescaled": lambda steps, rate: {"norm_control": "rescale"},
    "norm-regularized": lambda steps, rate: {"norm_control": "regularize"},
}
"""What a variant puts into a row, by the row's steps and learning rate. All else is `base`: one vector, templates,
the row's own start. `captions` keeps the row's captions, which all others leave out."""
_PLAIN: Columns = {
    "num_vectors": 1,
    "vectors_added_at": [],
    "regularization_weight": 0.0,
    "per_image_probability": 0.0,
    "norm_control": "none",
}


def ablate(
    manifest_uri: str,
    config: JobConfig,
    *,
    output: str,
    variants: Sequence[str] = (),
    seeds: int = 3,
    limit: int | None = None,
) -> int:
    """Learns every variant (all, unless named) of every concept with so many seeds, and compares them.

    Returns the exit code of `run.invert`. Raises UserError for what is wrong with names, manifest or models.
    """
    chosen = choose_variants(variants)
    source = Manifest.open(manifest_uri)
    checks.check(source, config)
    store = Store(output)
    rows = list(expand(source, config, chosen, seeds, limit))
    code = learn(store, rows, config)
    if code <= 1:
        compare(store, source, {row["concept_id"] for row in rows}, config, code)
    return code


def learn(store: Store, rows: list[dict[str, Any]], config: JobConfig) -> int:
    """Learns all runs, rows of `run_of`. Returns the exit code of `run.invert`."""
    store.write(MANIFEST, to_parquet(rows))
    place = store.path(MANIFEST) if store.is_local else f"{store.uri}/{MANIFEST}"
    return run.invert(place, config, output=store.uri)


def compare(store: Store, source: Manifest, runs: set[str], config: JobConfig, code: int) -> None:
    """Writes table and plot of the runs that are done, if any. `code`: of the job, for its run in MLflow."""
    scores = _scores(store, runs)
    if not scores:
        return
    concepts = {score.concept for score in scores}
    facts = sources.facts(config.model)
    concepts_of_base = [
        prepare.make(
            row, config, base=source.base, resolution=facts.resolution, model_identity=facts.identity
        )
        for row in source.rows()
        if row["concept_id"] in concepts
    ]
    table = ablation_table.table(scores + references(concepts_of_base, config), BASE)
    with tempfile.TemporaryDirectory() as folder:
        ablation_table.plot(table, Path(folder) / PLOT)
        publish(store, table, Path(folder) / PLOT, config, code)
    print(ablation_table.text(table, BASE))
    print(f"table and plot: {store.shown}/{TABLE}, {PLOT}")


def choose_variants(names: Sequence[str]) -> list[str]:
    """The named variants (all, without names) and `base`, in the order of VARIANTS. Raises UserError for others."""
    for name in names:
        if name not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise UserError(
                f"--variants: no variant {name!r}{nearest(name, list(VARIANTS))} (known: {known})"
            )
    return [name for name in VARIANTS if not names or name in names or name == BASE]


def expand(
    source: Manifest, config: JobConfig, variants: Sequence[str], seeds: int, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """A manifest row per run of the first `limit` concepts; `captions` only where a concept has some.

    Seed number s of a concept is the same in all its variants: they see the same noise.
    """
    for number, row in enumerate(source.rows()):
        if limit is not None and number >= limit:
            return
        for variant in variants:
            if variant == "captions" and "captions" not in row:
                continue
            training = config.training
            rate = row.get("learning_rate", training.learning_rate)
            columns = VARIANTS[variant](row.get("steps", training.steps), rate)
            for seed in range(seeds):
                yield run_of(row, config, source.base, variant, columns, seed)


def run_of(
    row: Row, config: JobConfig, base: str, variant: str, columns: Columns, seed: int
) -> dict[str, Any]:
    """One run's row, for a manifest that lies elsewhere: paths are absolute. `columns`: what the variant changes."""
    concept_id = row["concept_id"]
    placeholder = row.get("placeholder_token", f"<{concept_id}>")
    made: Columns = {name: value for name, value in row.items() if name != "placeholder_token"}
    for name, column in COLUMNS.items():
        if column.has_placeholder and name in made:  # each run has a placeholder_token of its own
            made[name] = [text.replace(placeholder, templates.WORD) for text in made[name]]
    if variant != "captions":
        made.pop("captions", None)
    made["images"] = [
        images.locate(image, base)[1] if isinstance(image, str) else image for image in row["images"]
    ]
    if (start := row.get("init_from")) and settings.is_file(start):
        made["init_from"] = images.locate(start, base)[1]
    tags = {CONCEPT_TAG: concept_id, VARIANT_TAG: variant, SEED_TAG: str(seed)}
    return {
        **made,
        **_PLAIN,
        **columns,
        "concept_id": f"{concept_id}.{variant}.{seed}",
        "seed": settings.concept_seed(row.get("seed", config.training.seed) + seed, concept_id),
        "tags": {**row.get("tags", {}), **tags},
    }


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows of `run_of` as a manifest file."""
    embedded = any(not isinstance(image, str) for row in rows for image in row["images"])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema(embedded)), sink)
    return sink.getvalue().to_pybytes()


def _scores(store: Store, wanted: set[str]) -> list[Score]:
    """Of the finished runs, and of the initializer that each started from."""
    found, starts = [], {}
    wanted = wanted - {failure.concept_id for failure in store.failures()}
    for result in store.results():
        tags = result.tags
        if result.concept_id not in wanted:
            continue
        concept, variant = tags[CONCEPT_TAG], tags[VARIANT_TAG]
        image, text = result.clip_image_similarity, result.clip_text_similarity
        if image is None or text is None:
            continue
        found.append(Score("variant", variant, concept, tags[SEED_TAG], image, text, result.seconds))
        image, text = result.clip_image_similarity_initializer, result.clip_text_similarity_initializer
        # The same for every seed: no random number of training is in it
        if variant == BASE and image is not None and text is not None:
            starts[concept] = Score("reference", "initializer", concept, "", image, text)
    order = list(VARIANTS)
    found.sort(key=lambda score: order.index(score.name))
    return [*found, *starts.values()]


def references(concepts: Sequence[Concept], config: JobConfig) -> list[Score]:
    """Bounds for the variants' scores (Gal et al. 2022, "Reference setups"), with the crops that the review compares.

    "training images": the training images in place of samples. Their image similarity is over pairs of different
    images; a concept with one image has none. "no word": samples of the prompts without the word. Loads the models.
    """
    backbone, scorer = loading.backbone(config), loading.scorer(config)
    seeds = list(range(config.scoring.num_images))

    @cache
    def samples(prompt: str) -> Tensor:
        """(num_images, d) features of samples of a prompt without a word."""
        pictures = sampling.sample_images(backbone, {}, [prompt] * len(seeds), seeds, config.review)
        return scorer.image_features(pictures)

    found = []
    for concept in concepts:
        training = scorer.crop_features(concept.images)
        crops = training.flatten(0, 1)
        edits = [scoring.without_word(prompt) for prompt in concept.edit_prompts]
        texts = scorer.text_features(edits)
        by_training = [scoring.text_similarity(crops, text) for text in texts]
        by_nothing = [
            scoring.text_similarity(samples(edit), text) for edit, text in zip(edits, texts, strict=True)
        ]
        if len(training) > 1:
            image = scoring.similarity_between_images(training)
            mean = sum(by_training) / len(edits)
            found.append(Score("reference", "training images", concept.concept_id, "", image, mean))
        image_prompt = scoring.without_word(config.scoring.image_prompt.of(concept.learnable_property))
        image = scoring.image_similarity(samples(image_prompt), crops)
        mean = sum(by_nothing) / len(edits)
        found.append(Score("reference", "no word", concept.concept_id, "", image, mean))
    return found


def publish(store: Store, table: pa.Table, plot: Path, config: JobConfig, code: int) -> None:
    """Table and plot into the store and into the job's run in MLflow. `code`: of the job, for its run."""
    parquet = plot.with_name(TABLE)
    pq.write_table(table, parquet)
    for path in (parquet, plot):
        store.write(path.name, path.read_bytes())
    if not config.tracking.enabled:
        return
    view = MLflowMirror(store, resolve_uri(config, store), config.tracking.experiment)
    try:
        view.open()
        view.close("FINISHED" if code == 0 else "FAILED", [parquet, plot])
    except Exception as error:
        logger.warning("MLflow: %s", redact_text(str(error)))
