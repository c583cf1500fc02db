"""`textinv predictor fit`: a predictor of words from the results of one or more outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from textinv_ray.concepts import image_features, predictor, word_files
from textinv_ray.concepts.image_features import ImageFeatures
from textinv_ray.concepts.predictor import Example, Predictor
from textinv_ray.concepts.word_files import Word
from textinv_ray.service.library.lexicon import named_words
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError


def fit(outputs: Sequence[str]) -> tuple[Predictor, list[Example], int]:
    """The predictor of all words of the outputs, these words, and the number of words without features.

    outputs: folders or fsspec URIs. Raises UserError for an output without words, for a concept that two of them have
    with the same images, and where the words don't make a predictor: too few, or of several models.
    """
    examples: list[Example] = []
    skipped = 0
    places: dict[str, list[tuple[Example, str]]] = {}
    for uri in outputs:
        store = Store(uri)
        ids = [concept_id for concept_id, _ in named_words(store)]
        if not ids:
            raise UserError(f"{store.shown} has no learned words")
        found = examples_of(store, ids)
        for example in found:
            # Cross-validation would find a concept's other word by its images
            for other, place in places.get(example.concept_id, ()):
                if _same_images(example, other):
                    raise UserError(
                        f"{example.concept_id!r} in {store.shown} has the images of {example.concept_id!r} in {place}: "
                        "give the words of a concept once"
                    )
            places.setdefault(example.concept_id, []).append((example, store.shown))
        examples += found
        skipped += len(ids) - len(found)
    try:
        return predictor.fit(examples), examples, skipped
    except ValueError as error:
        raise UserError(str(error)) from None


def examples_of(store: Store, concept_ids: Sequence[str]) -> list[Example]:
    """Of the concepts with a word and image features. Outputs of earlier versions have none. Raises StoreError."""

    def read(name: str) -> Iterator[tuple[str, bytes | None]]:
        return store.read_many(f"concepts/{concept_id}/{name}" for concept_id in concept_ids)

    files = read(word_files.STORED), read(word_files.INITIAL), read(image_features.FILE)
    results = {
        one.concept_id: one for one in store.records(Result, "concepts/{}/result.json", list(concept_ids))
    }
    found = []
    for concept_id, (_, word), (_, initial), (_, features) in zip(concept_ids, *files, strict=True):
        result = results.get(concept_id)
        if word is None or features is None or result is None:
            continue
        try:
            (parts,) = word_files.parse_words(word, word_files.STORED).values()
            own = ImageFeatures.from_bytes(features)
        except ValueError:
            continue
        kind, score = result.learnable_property, result.clip_image_similarity
        found.append(Example(concept_id, parts, own, _initial(initial), kind, score))
    return found


def _same_images(one: Example, other: Example) -> bool:
    """Whether their features are equal but for rounding."""
    images, others = one.features.images, other.features.images
    return images.shape == others.shape and np.allclose(
        images, others, atol=1e-2 * float(np.abs(images).max())
    )


def _initial(data: bytes | None) -> Word | None:
    """What a word was before its first step; None where that isn't stored, or damaged."""
    try:
        (parts,) = word_files.parse_words(data or b"", word_files.INITIAL).values()
    except ValueError:
        return None
    return parts


def lines(fitted: Predictor, skipped: int) -> Iterator[str]:
    """What it was fitted on, for people."""
    for (count, encoder), one in fitted.maps.items():
        vectors = f"{count} vector" + ("" if count == 1 else "s")
        yield (
            f"{encoder}, {vectors}: {one.words} words, {one.variant}, penalty {one.penalty:g}, cross-validated R2 "
            f"{one.r2:.3f}" + ("" if one.r2 > 0 else " (no better than the mean word)")
        )
        others = ", ".join(f"{name} {r2:.3f}" for name, r2 in one.r2_of.items() if name != one.variant)
        initial = "" if one.initial_r2 is None else f"; what learning began from {one.initial_r2:.3f}"
        yield f"  {others}{initial}"
    for made in fitted.refinements:
        vectors = f"{made.num_vectors} vector" + ("" if made.num_vectors == 1 else "s")
        yield (
            f"{vectors}: {made.steps} steps through the model on {made.words} words; denoising loss of "
            f"{len(made.left_out)} predicted words that were left out {made.loss_before:.5f}, then {made.loss:.5f}"
            + ("" if made.is_better else " (no better: the maps stay as they were)")
        )
    if fitted.likeness:
        found = fitted.likeness
        yield (
            f"likeness of pictures, {found.words} words predicted without their own concepts: {found.predicted:.3f}, "
            f"of what learning began from {found.initializer:.3f}"
        )
    if skipped:
        yield (
            f"left out: {skipped} words without image features; they were learned before these were stored, or "
            "without scores"
        )
