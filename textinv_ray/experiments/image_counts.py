"""How many images does a word need? Numbers of images x concepts x seeds as one manifest, then a table and a plot.

Gal et al. 2022 find that about five images are best. A run of `images-3` learns from a concept's first three. All
runs of a concept are compared with the same images: those beyond the largest number, which no run has learned from,
or all of them where there are no more. Otherwise the word of a single image would be compared with that image alone.

    OUTPUT/
      ablation.parquet     a row per number of images, with differences to the largest (ablation_table.py)
      set_sizes.png        reconstruction and editability against the number of images
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation, ablation_table
from textinv_ray.experiments.ablation import CONCEPT_TAG, SEED_TAG, VARIANT_TAG
from textinv_ray.experiments.ablation_table import Score
from textinv_ray.inversion import scoring
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.manifest.columns import Row
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import run
from textinv_ray.service.models import loading
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.util.errors import UserError
from textinv_ray.util.submitted_job import check_lasting

PLOT = "set_sizes.png"
_MOST_SAMPLES = 64  # the limit of review.images_per_prompt


def parse(text: str) -> list[int]:
    """The value of --set-sizes, such as "1,3,5", as ascending numbers of images. Raises UserError."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise UserError(f"--set-sizes {text!r}: write it as numbers of images, such as 1,3,5,10")
    return sorted(set(numbers))


def ablate(
    manifest_uri: str,
    config: JobConfig,
    *,
    output: str,
    counts: Sequence[int],
    seeds: int = 3,
    limit: int | None = None,
) -> int:
    """Learns each concept from its first n images, for all n in `counts` (ascending), and compares the words.

    seeds: runs for each concept and n. limit: only the first so many concepts. Returns the exit code of `run.invert`.
    Raises UserError for a manifest or model that can't be used, and when no concept has `counts[-1]` images.
    """
    check_lasting(output)
    if config.data.holdout:
        raise UserError(
            "--set-sizes: words are compared with the images beyond the largest number anyway; leave data.holdout out"
        )
    source = Manifest.open(manifest_uri)
    run.check(source, config)
    # The job stores the samples that it scores, and they are scored again here with other reference images
    kept = min(config.scoring.num_images, _MOST_SAMPLES)
    config = config.override([f"review.images_per_prompt={kept}"])
    store = Store(output)
    rows = list(expand(source, config, counts, seeds, limit))
    if not rows:
        raise UserError(
            f"{source.uri}: no concept has {counts[-1]} images; --set-sizes needs the largest number"
        )
    code, done = ablation.learn(store, rows, config)
    compare(store, source, done, counts, config, code)
    return code


def expand(
    source: Manifest, config: JobConfig, counts: Sequence[int], seeds: int, limit: int | None = None
) -> Iterator[Row]:
    """A manifest row for each run of the first `limit` concepts. Those with less than `counts[-1]` images are left out.

    Run number s of a concept has the same seed for all numbers of images.
    """
    for number, row in enumerate(source.rows()):
        if limit is not None and number >= limit:
            return
        if len(row["images"]) < counts[-1]:
            continue
        for count in counts:
            columns: ablation.Columns = {"prompts": [_image_prompt(row, config)]}
            part: Row = {**row, "images": row["images"][:count]}
            if "masks" in row:
                part["masks"] = row["masks"][:count]
            for seed in range(seeds):
                yield ablation.run_of(part, config, source.base, f"images-{count}", columns, seed)


def _image_prompt(row: Row, config: JobConfig) -> str:
    kind = row.get("learnable_property", config.training.learnable_property)
    return config.scoring.image_prompt.of(kind)


def compare(
    store: Store, source: Manifest, runs: set[str], counts: Sequence[int], config: JobConfig, code: int
) -> None:
    """Writes and prints the table and the plot of the finished runs, if there are any. `code`: exit code of the job."""
    found = scores(store, source, runs, counts, config)
    if not found:
        return
    base = f"images-{counts[-1]}"
    table = ablation_table.table(found, base)
    with tempfile.TemporaryDirectory() as folder:
        plot(table, Path(folder) / PLOT)
        ablation.publish(store, table, Path(folder) / PLOT, config, code)
    print(ablation_table.text(table, base))
    print(f"table and plot: {store.shown}/{ablation.TABLE}, {PLOT}")


def scores(
    store: Store, source: Manifest, runs: set[str], counts: Sequence[int], config: JobConfig
) -> list[Score]:
    """The scores of the finished runs, of the initializers, and of the unseen images in place of samples (a ceiling).

    Raises UserError when an image or a stored sample is missing.
    """
    done = [
        result
        for result in store.results()
        if result.concept_id in runs and result.clip_text_similarity is not None
    ]
    if not done:
        return []
    scorer = loading.scorer(config)
    wanted = {result.tags[CONCEPT_TAG] for result in done}
    try:
        by_concept = {
            concept.concept_id: ReferenceImages(concept, counts[-1], scorer)
            for concept in ablation.concepts_of(source, wanted, config)
        }
    except (ImageError, ValueError) as error:
        raise UserError(f"{error}; the runs can't be compared without it") from None
    variants, starts = [], {}
    for result in sorted(done, key=lambda result: result.images):
        concept = result.tags[CONCEPT_TAG]
        reference = by_concept[concept]
        text, start_text = result.clip_text_similarity, result.clip_text_similarity_initializer
        if text is None or start_text is None:
            continue
        image, seed = reference.reconstruction(store, result, result.steps), result.tags[SEED_TAG]
        variants.append(Score("variant", result.tags[VARIANT_TAG], concept, seed, image, text))
        if concept not in starts:  # the same for every run, because it doesn't depend on training
            image, text = reference.reconstruction(store, result, 0), start_text
            starts[concept] = Score("reference", "initializer", concept, "", image, text)
    ceilings = [reference.ceiling for reference in by_concept.values() if reference.ceiling]
    return [*variants, *starts.values(), *ceilings]


class ReferenceImages:
    """The images of a concept that samples of all its runs are compared with: those that no run has learned from.

    All crops of an image count, as in the review. When every image was learned from, all images are compared with.
    """

    def __init__(self, concept: Concept, largest: int, scorer: Scorer) -> None:
        """`concept`: with all its images, of which runs have learned from the first `largest` at most."""
        self._scorer = scorer
        images = scoring.crop_features(scorer, concept.images)
        learned, unseen = images[:largest].flatten(0, 1), images[largest:].flatten(0, 1)
        self.features: Tensor = unseen if len(unseen) else learned
        """(images * crops, d) of length 1."""
        self.ceiling: Score | None = None
        """Scores of the unseen images in place of samples, compared with those that were learned from."""
        if len(unseen):
            texts = scorer.text_features([scoring.without_word(prompt) for prompt in concept.edit_prompts])
            similarity = scoring.image_similarity(unseen, learned)
            by_text = [scoring.text_similarity(unseen, text) for text in texts]
            mean = sum(by_text) / len(by_text)
            self.ceiling = Score("reference", "other images", concept.concept_id, "", similarity, mean)

    def reconstruction(self, store: Store, result: Result, step: int) -> float:
        """clip_image_similarity in [-1, 1] of the run's samples of the image prompt at a step.

        Raises UserError when the store no longer has them.
        """
        data = store.read_concept(result.concept_id, sample_name(step))
        if data is None:
            raise UserError(f"{store.shown}: {result.concept_id} has no {sample_name(step)} any more")
        grid = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        pictures = np.stack(np.split(grid, result.images_per_prompt, axis=1))
        return scoring.image_similarity(self._scorer.image_features(pictures), self.features)


def plot(found: pa.Table, path: Path) -> None:
    """Draws both scores against the number of images: means with confidence intervals, and lines for references."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = found.to_pylist()
    points = [row for row in rows if row["kind"] == "variant"]
    references = [row for row in rows if row["kind"] == "reference"]
    counts = [int(row["name"].removeprefix("images-")) for row in points]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), dpi=120)
    for panel, axis in zip(panels, ablation_table.AXES, strict=True):
        means = [row[axis] for row in points]
        # A single concept has no interval
        errors = [0 if row[f"{axis}_high"] is None else row[f"{axis}_high"] - row[axis] for row in points]
        panel.errorbar(counts, means, yerr=errors, fmt="o-", capsize=4)
        for row, style in zip(references, ("--", ":"), strict=False):
            panel.axhline(row[axis], color="black", linestyle=style, linewidth=0.8, label=row["name"])
        panel.set_xticks(counts)
        panel.set_xlabel("images per concept")
        panel.set_ylabel(axis)
        panel.grid(alpha=0.3)
    if references:
        panels[0].legend(fontsize=8)
    confidence = f"{ablation_table.CONFIDENCE:.0%}"
    figure.suptitle(
        f"Mean and {confidence} confidence interval over {points[0]['concepts']} concepts", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
