"""A predictor of words: for each number of vectors and each text encoder, a map from the mean of a concept's image
features to the vectors of its word. Fitted on concepts that are done, used as `init_from`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from textinv_ray.concepts import variants
from textinv_ray.concepts.image_features import ImageFeatures, metadata
from textinv_ray.concepts.ridge import folds
from textinv_ray.concepts.word_files import Word
from textinv_ray.config.training import LearnableProperty
from textinv_ray.util import tensor_files

MIN_WORDS = 10
"""With fewer words of a number of vectors, none of that number is predicted."""
_FORMAT, _METADATA = "predictor.3", "textinv_ray"


@dataclass(frozen=True)
class Example:
    """A concept that is done."""

    concept_id: str
    """Its name, by which examples are put in order."""
    word: Word
    """Its learned word."""
    features: ImageFeatures
    """Of its training images."""
    initial: Word | None = None
    """What the word was before its first step; None where that isn't known."""
    learnable_property: LearnableProperty = "object"
    """What the word stands for."""
    score: float | None = None
    """Its clip_image_similarity; None where that isn't known."""


@dataclass(frozen=True, eq=False)
class Map:
    """The map of one text encoder, for words of V vectors."""

    arrays: Mapping[str, np.ndarray]
    """float32; see `variants.Fitted`."""
    words: int
    """On how many words it was fitted."""
    variant: str
    """How: one of `variants.VARIANTS`."""
    penalty: float
    """See `ridge.Ridge`."""
    r2_of: Mapping[str, float]
    """Cross-validated R2 of the vectors, by the variants that were tried: see `variants.Fitted`."""
    initial_r2: float | None = None
    """The same of the vectors that learning began from; None where these aren't known."""

    @property
    def r2(self) -> float:
        """Of the variant that was chosen."""
        return self.r2_of[self.variant]


@dataclass(frozen=True)
class Likeness:
    """How much pictures of words resemble their concepts, by cross-validation: mean cosines of the scoring model."""

    words: int
    """How many were drawn: each predicted without its own concept."""
    predicted: float
    """Of the predicted words."""
    initializer: float
    """Of what learning began from."""


@dataclass(frozen=True)
class Refinement:
    """What further fitting through the model did to the maps of one number of vectors: see `inversion/refining.py`."""

    num_vectors: int
    steps: int
    words: int
    """On how many words the maps were fitted, by these steps and before."""
    left_out: tuple[str, ...]
    """Concepts that these maps never saw."""
    loss_before: float
    """Mean denoising loss of the words that are predicted for these."""
    loss: float
    """The same after the steps, by the same draws."""

    @property
    def is_better(self) -> bool:
        """Whether the predictor has the refined maps: else it has those of all words."""
        return self.loss < self.loss_before


@dataclass(frozen=True, eq=False)
class Predictor:
    """Maps by (number of vectors, text encoder), and what they may be used with."""

    model: str
    """Identity of the model's weights."""
    scorer: str
    """The scoring model whose features are mapped."""
    maps: Mapping[tuple[int, str], Map]
    likeness: Likeness | None = None
    """None: nothing was drawn."""
    refinements: tuple[Refinement, ...] = ()
    """By number of vectors; empty: none was tried."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of vectors of the words that it predicts, ascending."""
        return tuple(sorted({count for count, _ in self.maps}))

    @property
    def useless(self) -> str:
        """Why its words are no better start than those that learning began from; empty when they are better.

        Better: nearer to the learned words in mean R2 over all maps, and nearer than the catalogue's mean.
        """
        r2 = float(np.mean([one.r2 for one in self.maps.values()]))
        known = [one.initial_r2 for one in self.maps.values() if one.initial_r2 is not None]
        initial = float(np.mean(known)) if known else -math.inf
        nearer = f"by cross-validation, predicted words (R2 {r2:.3f}) are no nearer to the learned ones than"
        if r2 <= 0:
            return f"{nearer} the mean of these"
        return f"{nearer} the words that learning began from ({initial:.3f})" if r2 <= initial else ""

    def count_nearest(self, count: int) -> int:
        """This number of vectors if words of so many are predicted, else the smallest number of which they are."""
        return count if count in self.counts else self.counts[0]

    def check(self, model: str, scorer: str, count: int) -> None:
        """Raises ValueError, with what to do, where it can't predict words of `count` vectors for these models."""
        if model != self.model:
            raise ValueError(
                "the predictor was fitted on words of another model; fit one on words of this one"
            )
        if scorer != self.scorer:
            raise ValueError(
                f"the predictor reads features of the scoring model {self.scorer!r}, the job's scoring.model is "
                f"{scorer!r}; fit one on outputs that were scored by it"
            )
        if count not in self.counts:
            raise ValueError(
                f"the predictor has no words of {count} vectors (it has: {', '.join(map(str, self.counts))}); "
                "set num_vectors, or fit one on such words"
            )

    def only(self, count: int) -> Predictor:
        """The maps for words of one number of vectors."""
        return Predictor(
            self.model, self.scorer, {key: found for key, found in self.maps.items() if key[0] == count}
        )

    def word(
        self, images: np.ndarray, count: int, learnable_property: LearnableProperty = "object"
    ) -> dict[str, np.ndarray]:
        """The predicted word: float32 (V, D) by text encoder. images: float32 (N, d), as `ImageFeatures.images`.

        Raises ValueError for features of another length.
        """
        mean = images.astype(np.float64).mean(axis=0)
        style, found = np.array([float(learnable_property == "style")]), {}
        for (number, encoder), one in self.maps.items():
            if number != count:
                continue
            if len(mean) != variants.takes(one.arrays):
                raise ValueError(
                    f"the predictor takes {variants.takes(one.arrays)} numbers of an image, the scoring model gives "
                    f"{len(mean)}"
                )
            arrays = {name: part.astype(np.float64) for name, part in one.arrays.items()}
            vectors = variants.predict(arrays, mean[None], style)
            found[encoder] = vectors.reshape(count, -1).astype(np.float32)
        return found

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors: dict[str, np.ndarray] = {}
        notes = []
        for (count, encoder), one in self.maps.items():
            tensors |= {f"{count}/{encoder}/{name}": part for name, part in one.arrays.items()}
            figures = {
                "words": one.words,
                "variant": one.variant,
                "penalty": one.penalty,
                "r2": dict(one.r2_of),
                "initial_r2": one.initial_r2,
            }
            notes.append({"num_vectors": count, "encoder": encoder, **figures})
        likeness = None if self.likeness is None else vars(self.likeness)
        note = {
            "format": _FORMAT,
            "model": self.model,
            "scorer": self.scorer,
            "maps": notes,
            "likeness": likeness,
            "refinements": [vars(one) for one in self.refinements],
        }
        return tensor_files.to_bytes(tensors, {_METADATA: json.dumps(note)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Predictor:
        """The inverse of `to_bytes`. Raises ValueError for another file, and for one that is damaged."""
        try:
            tensors, note = safetensors.numpy.load(data), json.loads(metadata(data)[_METADATA])
            maps = {}
            for one in note["maps"]:
                count, encoder = int(one["num_vectors"]), str(one["encoder"])
                start, initial = f"{count}/{encoder}/", one["initial_r2"]
                arrays = {
                    name.removeprefix(start): part for name, part in tensors.items() if name.startswith(start)
                }
                _check(arrays, count)
                maps[count, encoder] = Map(
                    arrays,
                    int(one["words"]),
                    str(one["variant"]),
                    float(one["penalty"]),
                    {str(name): float(r2) for name, r2 in one["r2"].items()},
                    None if initial is None else float(initial),
                )
            drawn = note["likeness"]
            likeness = drawn and Likeness(
                int(drawn["words"]), float(drawn["predicted"]), float(drawn["initializer"])
            )
            refinements = tuple(
                Refinement(
                    int(one["num_vectors"]),
                    int(one["steps"]),
                    int(one["words"]),
                    tuple(map(str, one["left_out"])),
                    float(one["loss_before"]),
                    float(one["loss"]),
                )
                for one in note["refinements"]
            )
            return cls(str(note["model"]), str(note["scorer"]), maps, likeness, refinements)
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"the predictor can't be read: {type(error).__name__}") from None


def _check(arrays: Mapping[str, np.ndarray], count: int) -> None:
    """Raises KeyError or ValueError for arrays that make no words of `count` vectors."""
    weights, bias = arrays["weights"], arrays["bias"]
    fits = weights.ndim == 2 and bias.shape == weights.shape[1:] and count > 0 and not len(bias) % count
    if not fits or not all(np.isfinite(part).all() for part in arrays.values()):
        raise ValueError("its maps are damaged")
    tried = variants.predict(arrays, np.zeros((1, variants.takes(arrays))), np.zeros(1))
    if tried.shape != (1, len(bias)):
        raise ValueError("its maps are damaged")


def is_predictor(data: bytes) -> bool:
    """Whether these are the bytes of a predictor's file rather than of words."""
    try:
        note = json.loads(metadata(data)[_METADATA])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(note, dict) and note.get("format") == _FORMAT


def fit(examples: Sequence[Example]) -> Predictor:
    """Fits a map for each text encoder and each number of vectors of which there are MIN_WORDS words.

    The same examples in any order give the same predictor to the bit. Raises ValueError, with what to do, where there
    are too few words, and for words of several models or features of several scoring models.
    """
    for name, what in (("model", "models"), ("scorer", "scoring models")):
        found = sorted({getattr(example.features, name) for example in examples})
        if len(found) > 1:
            raise ValueError(
                f"the words are of several {what}: {', '.join(found)}; fit one predictor for each"
            )
    groups: dict[int, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=order):
        groups[len(next(iter(example.word.values())))].append(example)
    maps = {}
    for count, group in sorted(groups.items()):
        if len(group) < MIN_WORDS:
            continue
        for encoder in group[0].word:
            data = _data(group, encoder)
            solved, variant, r2 = variants.choose(data, MIN_WORDS)
            maps[count, encoder] = Map(
                {name: part.astype(np.float32) for name, part in solved.arrays.items()},
                len(group),
                variant,
                solved.penalty,
                {name: round(value, 6) for name, value in r2.items()},
                _initial_r2(group, encoder, data.y),
            )
    if not maps:
        counts = ", ".join(f"{len(group)} of {count} vectors" for count, group in sorted(groups.items()))
        raise ValueError(
            f"a predictor needs at least {MIN_WORDS} words of one number of vectors with image features; there are "
            f"{counts or 'none'}"
        )
    first = examples[0].features
    return Predictor(first.model, first.scorer, maps)


def held_out_words(examples: Sequence[Example], fitted: Predictor) -> Iterator[tuple[Example, Word]]:
    """Each example with the word that maps of the same variants predict which are fitted on the other folds.

    In the order of `fit`, whose result `fitted` is. Of refined maps only those examples that were left out.
    """
    left_out = {one.num_vectors: one.left_out for one in fitted.refinements if one.is_better}
    for count in fitted.counts:
        group = _of_count(examples, count)
        if count in left_out:
            for example in (one for one in group if one.concept_id in left_out[count]):
                images = example.features.images
                yield example, fitted.word(images, count, example.learnable_property)
            continue
        named = {variant.name: variant for variant in variants.VARIANTS}
        found = {
            encoder: variants.held_out(_data(group, encoder), named[one.variant], one.penalty)
            for (number, encoder), one in fitted.maps.items()
            if number == count
        }
        for place, example in enumerate(group):
            yield example, {encoder: part[place].astype(np.float32) for encoder, part in found.items()}


def fit_again(examples: Sequence[Example], fitted: Predictor, count: int) -> Predictor:
    """The maps of one number of vectors, fitted on these examples by the variants and penalties that `fitted` has."""
    named, group = {variant.name: variant for variant in variants.VARIANTS}, _of_count(examples, count)
    maps = {}
    for (number, encoder), one in fitted.maps.items():
        if number == count:
            arrays = variants.fit_again(_data(group, encoder), named[one.variant], one.penalty)
            maps[number, encoder] = replace(
                one, arrays={name: part.astype(np.float32) for name, part in arrays.items()}, words=len(group)
            )
    return Predictor(fitted.model, fitted.scorer, maps)


def left_out(count: int, most: int) -> np.ndarray:
    """Which of so many examples are left out of further fitting: a tenth, bool (count,); the same in all calls."""
    found = next(iter(folds(count)), np.zeros(0, bool))
    return found & (np.cumsum(found) <= most)


def _of_count(examples: Sequence[Example], count: int) -> list[Example]:
    """Those of words of so many vectors, in order."""
    return [one for one in sorted(examples, key=order) if len(next(iter(one.word.values()))) == count]


def _data(group: Sequence[Example], encoder: str) -> variants.Data:
    """What one encoder's map is fitted on."""
    scores = [one.score for one in group if one.score is not None]
    weights = np.maximum(np.array(scores, dtype=np.float64), 0.0)
    is_scored = len(scores) == len(group) and bool(weights.all())
    return variants.Data(
        np.stack([one.features.images.mean(axis=0, dtype=np.float64) for one in group]),
        np.stack([one.word[encoder].astype(np.float64) for one in group]),
        np.array([float(one.learnable_property == "style") for one in group]),
        weights / weights.mean() if is_scored else None,
    )


def _initial_r2(group: Sequence[Example], encoder: str, y: np.ndarray) -> float | None:
    """R2 of the vectors that learning began from. y: (n, V, D), the learned ones."""
    initial = [example.initial[encoder] for example in group if example.initial]
    spread = float(np.square(y - y.mean(axis=0, dtype=np.float64)).sum())
    if len(initial) < len(group) or any(one.shape != y.shape[1:] for one in initial) or not spread:
        return None
    return round(1 - float(np.square(y - np.stack(initial).astype(np.float64)).sum()) / spread, 6)


def order(example: Example) -> tuple[str, bytes]:
    """Key by which examples are sorted, so that their order makes no difference."""
    return example.concept_id, b"".join(part.tobytes() for part in example.word.values())
