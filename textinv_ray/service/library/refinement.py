"""Fits a predictor's maps further through the model, on the images that the words were learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.fetch import ImageError
from textinv_ray.concepts.predictor import MIN_WORDS, Example, Predictor
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import refining
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.refining import Pair
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import choose_pack_size
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import concept_of
from textinv_ray.service.models import loading, sources
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UnreachableError, UserError
from textinv_ray.util.redact import redact

_MOST_CONCEPTS = 32  # of a step


def refine(
    outputs: Sequence[str],
    examples: Sequence[Example],
    fitted: Predictor,
    config: JobConfig,
    steps: int,
    manifests: Sequence[str] = (),
) -> tuple[Predictor, int]:
    """The predictor with maps that took `steps` steps, where that helps, and the number of words without images.

    fitted: `predicting.fit` of the outputs, which has these examples. manifests: with the words' images; none: those of
    the outputs' jobs. Raises UserError for another model, and where too few of the images are found.
    """
    facts = sources.facts(config.model)
    if facts.identity != fitted.model:
        raise UserError(
            f"--refine: {redact(config.model.path)} is not the model that the words were learned for"
        )
    found = list(manifests) or [uri for output in outputs if (uri := _manifest_of(Store(output)))]
    if not found:
        raise UserError(
            "--refine needs the words' images, and no job.json says where they are: give --manifest"
        )
    known = {one.concept_id: one for one in examples}
    if len(known) < len(examples):
        twice = next(
            iter(id_ for id_, count in Counter(one.concept_id for one in examples).items() if count > 1)
        )
        raise UserError(
            f"--refine: {twice!r} is a concept of several outputs, and which images are its word's isn't known"
        )
    pairs = [Pair(known.pop(concept.concept_id), concept) for concept in _concepts(found, config, set(known))]
    if len(pairs) < MIN_WORDS:
        raise UserError(
            f"--refine: images of {len(pairs)} of the {len(examples)} words were found in "
            f"{', '.join(map(redact, found))}; at least {MIN_WORDS} are needed"
        )
    backbone = loading.backbone(config)
    size = _size(pairs, backbone, config)
    try:
        return refining.refine(fitted, pairs, backbone, config, steps, size), len(known)
    except ValueError as error:
        raise UserError(f"--refine: {error}") from None


def _manifest_of(store: Store) -> str:
    job = store.job()
    return job.manifest if job else ""


def _concepts(manifests: Sequence[str], config: JobConfig, wanted: set[str]) -> Iterator[Concept]:
    """Those of the wanted ids whose images can be prepared, each once."""
    facts = sources.facts(config.model)
    for uri in manifests:
        manifest = Manifest.open(uri)
        for row in manifest.rows():
            if row["concept_id"] not in wanted:
                continue
            # The word is there already: what learning began from needn't be found again
            start = {"init_from": "vocabulary_mean", "initializer_token": None}
            try:
                concept = concept_of({**row, **start}, config, manifest.base, facts)
            except (ValueError, ImageError, UnreachableError):
                continue
            wanted.discard(concept.concept_id)
            yield concept


def _size(pairs: Sequence[Pair], backbone: Backbone, config: JobConfig) -> int:
    """Concepts of a step, a sample each: as many samples as a step of the job's packs has, 32 at most."""
    pack = config.pack.size
    if pack == "auto":
        room = config.model_copy(update={"pack": config.pack.model_copy(update={"max_size": _MOST_CONCEPTS})})
        return choose_pack_size(backbone, ConceptTask(refining.begun(pairs[0]), backbone, room), room)
    return min(_MOST_CONCEPTS, pack * config.training.batch_size)
