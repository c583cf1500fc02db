"""Ablations: every variant of the training settings, for every concept and seed, then a table and a plot.

All runs are rows of one manifest, which an ordinary job learns. So finished runs are skipped, interrupted runs are
resumed, and all share packs.

    OUTPUT/
      ablation_manifest-*.parquet  a row per run, such as rex.progressive.0; the name has a digest of the rows
      concepts/ ...                what every job stores (service/store/store.py)
      ablation.parquet             a row per variant and reference (ablation_table.py)
      ablation.png                 reconstruction against editability, as in Gal et al. 2022, section 5.3

Words between the base variant's and their initializers (interpolated.py) are further points of table and plot.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from textinv_ray.concepts import settings, templates
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import is_file
from textinv_ray.experiments import ablation_table, interpolated
from textinv_ray.experiments.ablation_table import Score
from textinv_ray.experiments.interpolated import Models
from textinv_ray.inversion import sampling, scoring
from textinv_ray.manifest.columns import COLUMNS, Row
from textinv_ray.manifest.image_columns import embedded_columns, schema
from textinv_ray.manifest.reader import Manifest
from textinv_ray.manifest.uris import locate
from textinv_ray.service.driver import run
from textinv_ray.service.intake import plan
from textinv_ray.service.intake.preparation import concept_of
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.mirror import MLflowMirror
from textinv_ray.service.tracking.uri import resolve_uri
from textinv_ray.util.errors import UnreachableError, UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import redact_text
from textinv_ray.util.submitted_job import check_lasting
from textinv_ray.util.text import nearest

logger = logging.getLogger(__name__)

BASE = "base"
TABLE, PLOT = "ablation.parquet", "ablation.png"
CONCEPT_TAG, VARIANT_TAG, SEED_TAG = "ablation_concept", "ablation_variant", "ablation_seed"


class Columns(TypedDict, total=False):
    """The columns of a manifest that studies set; see `manifest.columns.Row`."""

    num_vectors: int
    vectors_added_at: list[int]
    regularization_weight: float
    per_image_probability: float
    norm_control: str
    optimizer: str
    direction_prior: float
    context_weight: float
    learning_rate: float
    steps: int
    init_from: str
    prompts: list[str]


def _progressive(steps: int, learning_rate: float) -> Columns:
    # The paper adds vectors at 2000 and 4000 of 5000 steps
    added_at = [min(max(1, round(share * steps)), steps - 1) for share in (0.4, 0.8)]
    return {"num_vectors": 1, "vectors_added_at": added_at}


def _directional(learning_rate: float, direction_prior: float) -> Columns:
    return {
        "optimizer": "directional",
        "learning_rate": learning_rate,
        "direction_prior": direction_prior,
        "norm_control": "none",
    }


VARIANTS: dict[str, Callable[[int, float], Columns]] = {
    BASE: lambda steps, rate: {},
    "two-vectors": lambda steps, rate: {"num_vectors": 2, "vectors_added_at": []},
    "three-vectors": lambda steps, rate: {"num_vectors": 3, "vectors_added_at": []},
    "progressive": _progressive,
    "regularized": lambda steps, rate: {"regularization_weight": 0.01},
    "per-image": lambda steps, rate: {"per_image_probability": 0.25},
    # The paper compares 5e-3 with 1e-4 and 2e-2
    "low-rate": lambda steps, rate: {"learning_rate": rate / 50},
    "high-rate": lambda steps, rate: {"learning_rate": rate * 4},
    "captions": lambda steps, rate: {},
    "vocabulary-mean": lambda steps, rate: {"init_from": "vocabulary_mean"},
    "auto": lambda steps, rate: {"init_from": "auto"},
    "norm-rescaled": lambda steps, rate: {"norm_control": "rescale"},
    "norm-regularized": lambda steps, rate: {"norm_control": "regularize"},
    "directional-slow": lambda steps, rate: _directional(0.04, 0.0),
    "directional": lambda steps, rate: _directional(0.08, 0.0),
    "directional-prior": lambda steps, rate: _directional(0.08, 1e-3),
    # For the bundled model, where the gradient of the term is 20 times that of the loss; the paper for SD 1.5: 1.5e-4
    "context": lambda steps, rate: {"context_weight": 1e-2},
    "context-strong": lambda steps, rate: {"context_weight": 5e-2},
}
"""Name of a variant -> the columns that it sets, given the row's steps and learning rate.

Everything else is as in `base`, which has the settings of the job and of the row, but for the row's captions:
`captions` is `base` with these."""
_MIN_STEPS = {"progressive": 3}
"""Steps that a row needs for a variant."""
PREDICTED = {"predicted": 0, "predicted-10": 10}
"""Name of a variant that starts from a predictor's word -> its steps, or those of the row if these are fewer."""


def ablate(
    manifest_uri: str,
    config: JobConfig,
    *,
    output: str,
    variants: Sequence[str] = (),
    seeds: int = 3,
    limit: int | None = None,
    predictor: str | None = None,
    shares: Sequence[float] = (),
) -> int:
    """Learns the named variants (all, without names) of each concept, `seeds` times each, and compares them.

    limit: only the first so many concepts. predictor: path or URI of the file that PREDICTED variants start from.
    shares: how far the base variant's words are moved back towards their initializers, each in (0, 1).
    Returns the exit code of `run.invert`. Raises UserError for unknown variants, and for a manifest or model that can't
    be used.
    """
    chosen = choose_variants(variants, with_predictor=predictor is not None)
    if shares and config.data.holdout:
        raise UserError(
            "--towards-initializer: each run holds other images out, so these words can't be scored against one set; "
            "leave data.holdout out"
        )
    check_lasting(output)
    # Words of styles as `training` says: a variant that sets an optimizer or a rate would change the others as well.
    config = config.override(["training.style={}"])
    source = Manifest.open(manifest_uri)
    run.check(source, config)
    store = Store(output)
    place = None if predictor is None else locate(predictor, os.getcwd())[1]
    rows = list(expand(source, config, chosen, seeds, limit, place))
    code, done = learn(store, rows, config)
    compare(store, source, done, config, code, shares)
    return code


def learn(store: Store, rows: list[Row], config: JobConfig) -> tuple[int, set[str]]:
    """Learns all runs; `rows`: of `run_of`. Raises UserError.

    Returns the exit code of `run.invert` and the ids of the runs that have a word of these rows and settings, so that
    words of an earlier study in the same output aren't compared; none when the job was stopped.
    """
    if config.service.waves.first is not None:
        raise UserError(
            "service.waves: in a study each word starts from what its variant says; leave waves out"
        )
    data = to_parquet(rows)
    # Another study in the same output, which the lock refuses later, must not replace the manifest of a running one.
    name = f"ablation_manifest-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
    store.write(name, data)
    place = store.path(name) if store.is_local else f"{store.uri}/{name}"
    code = run.invert(place, config, output=store.uri)
    if code > ExitCode.INCOMPLETE:
        return code, set()
    facts, stored = sources.facts(config.model), StoredResults.read(store)
    return code, plan.make(Manifest.open(place), config, facts, stored).done


def compare(
    store: Store,
    source: Manifest,
    runs: set[str],
    config: JobConfig,
    code: int,
    shares: Sequence[float] = (),
) -> None:
    """Writes and prints the table and the plot of these finished runs, if there are any.

    code: exit code of the job. shares: see `ablate`.
    """
    scores = _scores(store, runs)
    if not scores:
        return
    wanted = {score.concept for score in scores}
    missing: list[str] = []
    concepts = list(concepts_of(source, wanted, config, missing))
    models = Models.load(config)
    base = [(score.concept, score.seed) for score in scores if score.name == BASE]
    words = {key: f"{key[0]}.{BASE}.{key[1]}" for key in base}
    between = interpolated.scores(store, concepts, words, shares, models, config)
    every = scores + between + references(concepts, models, config)
    every.sort(key=lambda score: score.kind == "reference")
    table = ablation_table.table(every, BASE)
    with tempfile.TemporaryDirectory() as folder:
        ablation_table.plot(table, Path(folder) / PLOT)
        publish(store, table, Path(folder) / PLOT, config, code)
    print(ablation_table.text(table, BASE))
    for line in missing:
        print(f"left out of the references: {line}")
    print(f"table and plot: {store.shown}/{TABLE}, {PLOT}")


def concepts_of(
    source: Manifest, wanted: Collection[str], config: JobConfig, missing: list[str] | None = None
) -> Iterator[Concept]:
    """The concepts with these ids, with their images. Raises UserError when the model can't be read.

    missing: gets a line for each concept whose images can't be had; None: then ImageError or ValueError is raised.
    """
    facts = sources.facts(config.model)
    facts.family.check(config)
    for row in source.rows():
        if row["concept_id"] not in wanted:
            continue
        try:
            concept = concept_of(row, config, source.base, facts)
        except (ImageError, UnreachableError, ValueError) as error:
            if missing is None:
                raise
            missing.append(f"{row['concept_id']}: {error}")
        else:
            yield concept


def choose_variants(names: Sequence[str], *, with_predictor: bool = False) -> list[str]:
    """The named variants (all, without names) and `base`, in the order of VARIANTS and PREDICTED.

    with_predictor: whether there is a predictor. Raises UserError for others, and for PREDICTED without a predictor.
    """
    every = [*VARIANTS, *PREDICTED]
    for name in names:
        if name in PREDICTED and not with_predictor:
            raise UserError(f"--variants: {name!r} starts from a predictor; give its file with --predictor")
        if name not in every:
            known = ", ".join(every)
            raise UserError(f"--variants: no variant {name!r}{nearest(name, every)} (known: {known})")
    available = every if with_predictor else list(VARIANTS)
    return [name for name in available if not names or name in names or name == BASE]


def expand(
    source: Manifest,
    config: JobConfig,
    variants: Sequence[str],
    seeds: int,
    limit: int | None = None,
    predictor: str | None = None,
) -> Iterator[Row]:
    """A manifest row for each run of the first `limit` concepts.

    The variant `captions` needs a row with captions, `progressive` some steps, and those with a norm's control a row
    whose optimizer isn't directional.

    predictor: absolute path or URI of the file that PREDICTED variants start from.

    Run number s of a concept has the same seed in all variants, so they learn from the same random draws.
    """
    for number, row in enumerate(source.rows()):
        if limit is not None and number >= limit:
            return
        for variant in variants:
            if variant == "captions" and "captions" not in row:
                continue
            found = settings.settings_of(row, config)
            rate, steps = found.learning_rate, found.steps
            if steps < _MIN_STEPS.get(variant, 0):
                continue
            if variant.startswith("norm-") and found.optimizer == "directional":
                continue  # such a word has one norm all the time
            if variant in VARIANTS:
                columns = VARIANTS[variant](steps, rate)
            else:
                assert predictor is not None
                columns = {"init_from": predictor, "steps": min(steps, PREDICTED[variant])}
            for seed in range(seeds):
                yield run_of(row, config, source.base, variant, columns, seed)


def run_of(row: Row, config: JobConfig, base: str, variant: str, columns: Columns, seed: int) -> Row:
    """The row of run number `seed`, in a manifest at another place: all paths are absolute.

    row: of the source manifest, whose relative paths start at `base`. columns: what the variant sets.
    """
    concept_id = row["concept_id"]
    placeholder = row.get("placeholder_token", f"<{concept_id}>")
    made: Row = {**row}
    made.pop("placeholder_token", None)  # each run has a placeholder_token of its own
    for name, column in COLUMNS.items():
        if column.has_placeholder and name in made:
            texts = made[name]  # type: ignore[literal-required]
            made[name] = [text.replace(placeholder, templates.WORD) for text in texts]  # type: ignore[literal-required]
    if variant != "captions":
        made.pop("captions", None)
    made["images"] = [locate(image, base)[1] if isinstance(image, str) else image for image in row["images"]]
    if "masks" in row:
        made["masks"] = [locate(mask, base)[1] if isinstance(mask, str) else mask for mask in row["masks"]]
    if (start := row.get("init_from") or settings.start_of(row, config)[0]) and is_file(start):
        made["init_from"] = locate(start, base)[1]
    tags = {CONCEPT_TAG: concept_id, VARIANT_TAG: variant, SEED_TAG: str(seed)}
    return {
        **made,
        **columns,
        "concept_id": f"{concept_id}.{variant}.{seed}",
        "seed": settings.concept_seed(row.get("seed", config.training.seed) + seed, concept_id),
        "tags": {**row.get("tags", {}), **tags},
    }


def to_parquet(rows: list[Row]) -> bytes:
    """The rows of `run_of` as a manifest file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema(embedded_columns(rows))), sink)
    return bytes(sink.getvalue().to_pybytes())


def _scores(store: Store, wanted: set[str]) -> list[Score]:
    """The scores of the finished runs, and of the initializers that they started from."""
    found, starts = [], {}
    for result in store.results():
        tags = result.tags
        if result.concept_id not in wanted:
            continue
        concept, variant = tags[CONCEPT_TAG], tags[VARIANT_TAG]
        image, text = result.clip_image_similarity, result.clip_text_similarity
        if image is None or text is None:
            continue
        judge = result.judge_similarity
        found.append(Score("variant", variant, concept, tags[SEED_TAG], image, text, result.seconds, judge))
        image, text = result.clip_image_similarity_initializer, result.clip_text_similarity_initializer
        # The same for every seed, because it doesn't depend on training
        if variant == BASE and image is not None and text is not None:
            judge = result.judge_similarity_initializer
            starts[concept] = Score("reference", "initializer", concept, "", image, text, judge=judge)
    order = [*VARIANTS, *PREDICTED]
    found.sort(key=lambda score: order.index(score.name))
    return [*found, *starts.values()]


def references(concepts: Sequence[Concept], models: Models, config: JobConfig) -> list[Score]:
    """Bounds for the variants' scores (Gal et al. 2022, "Reference setups"), with the crops that the review compares.

    "training images": the training images in place of samples. Their image similarity is over pairs of different
    images, so a concept with one image has none; with `data.holdout` it is to the held-out images. "no word": samples
    of the prompts without the word.
    """
    scorer, judge = models.scorer, models.judge
    seeds = list(range(config.scoring.num_images))

    @cache
    def pictures(prompt: str) -> np.ndarray:
        """uint8 (num_images, H, W, 3): samples of a prompt without a word."""
        return sampling.sample_images(models.backbone, {}, [prompt] * len(seeds), seeds, config.review)

    @cache
    def samples(prompt: str) -> Tensor:
        """(num_images, d): their features."""
        return scorer.image_features(pictures(prompt))

    found = []
    for concept in concepts:
        training = scoring.crop_features(scorer, concept.images)
        judged = scoring.crop_features(judge, concept.images) if judge else None
        crops = scoring.crop_features(scorer, concept.reference_images).flatten(0, 1)
        judged_crops = scoring.crop_features(judge, concept.reference_images).flatten(0, 1) if judge else None
        edits = [scoring.without_word(prompt) for prompt in concept.edit_prompts]
        texts = scorer.text_features(edits)
        by_training = [scoring.text_similarity(training.flatten(0, 1), text) for text in texts]
        by_nothing = [
            scoring.text_similarity(samples(edit), text) for edit, text in zip(edits, texts, strict=True)
        ]
        if len(training) > 1 or concept.heldout is not None:
            image = _of_training(training, crops, concept)
            mean = sum(by_training) / len(edits)
            by_judge = None
            if judged is not None and judged_crops is not None:
                by_judge = _of_training(judged, judged_crops, concept)
            name = "training images"
            found.append(Score("reference", name, concept.concept_id, "", image, mean, judge=by_judge))
        image_prompt = scoring.without_word(config.scoring.image_prompt.of(concept.learnable_property))
        image = scoring.image_similarity(samples(image_prompt), crops)
        mean, by_judge = sum(by_nothing) / len(edits), None
        if judge and judged_crops is not None:
            of_samples = judge.image_features(pictures(image_prompt))
            by_judge = scoring.image_similarity(of_samples, judged_crops)
        found.append(Score("reference", "no word", concept.concept_id, "", image, mean, judge=by_judge))
    return found


def _of_training(training: Tensor, references: Tensor, concept: Concept) -> float:
    """The similarity of training images (N, A, d) to what words are scored against, (crops, d).

    That is to each other, or to the held-out ones.
    """
    if concept.heldout is None:
        return float(scoring.similarity_between_images(training))
    return float(scoring.image_similarity(training.flatten(0, 1), references))


def publish(store: Store, table: pa.Table, plot: Path, config: JobConfig, code: int) -> None:
    """Writes table and plot to the store and to the job's run in MLflow. `code`: exit code of the job.

    An error of MLflow is logged, not raised.
    """
    parquet = plot.with_name(TABLE)
    pq.write_table(table, parquet)
    for path in (parquet, plot):
        store.write(path.name, path.read_bytes())
    if not config.tracking.enabled:
        return
    mirror = MLflowMirror(store, resolve_uri(config, store), config.tracking.experiment)
    try:
        mirror.open()
        mirror.close(
            "FINISHED" if code == ExitCode.DONE else "FAILED", StoredResults.read(store), [parquet, plot]
        )
    except Exception as error:
        logger.warning("MLflow: %s", redact_text(str(error)))
