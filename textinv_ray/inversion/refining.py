"""Goes on fitting a predictor's maps through the frozen model, by the denoising loss of the words that they predict.

A map in closed form brings predicted vectors near the learned ones, whatever of their distance the model takes note
of. Its weights are the start here; the gradient of each word's loss (Gal et al. 2022, eq. (2)) by its vectors is
carried on to them, and Adam (Kingma & Ba 2015) takes the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from textinv_ray.concepts import predictor, variants
from textinv_ray.concepts.concept import Concept
from textinv_ray.concepts.predictor import Example, Map, Predictor, Refinement
from textinv_ray.config.job import JobConfig
from textinv_ray.config.training import StoppingConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.task import ConceptTask

logger = logging.getLogger(__name__)

_RATE = 0.004  # of Adam, relative to the size of the learned vectors
_WARM_UP_STEPS = 10
_BETA1, _BETA2 = 0.9, 0.99
_KEPT = 0.6  # chance of an image to count in the features of a step
_MOST_LEFT_OUT = 32
_KEPT_CONCEPTS = 512  # whose latents lie on the device: some GB for SDXL
_DRAWS = 32  # of the loss of each concept that is left out
_SEED = 0


@dataclass(frozen=True)
class Pair:
    """A concept that is done, and what it was learned from."""

    example: Example
    concept: Concept


@dataclass
class _Adam:
    """One array and its moments."""

    value: np.ndarray
    rate: float

    def __post_init__(self) -> None:
        self._mean, self._square, self._steps = np.zeros_like(self.value), np.zeros_like(self.value), 0

    def step(self, gradient: np.ndarray, factor: float) -> None:
        """`factor`: of the rate, by the schedule."""
        self._steps += 1
        self._mean += (1 - _BETA1) * (gradient - self._mean)
        self._square += (1 - _BETA2) * (np.square(gradient) - self._square)
        mean = self._mean / (1 - _BETA1**self._steps)
        root = np.sqrt(self._square / (1 - _BETA2**self._steps))
        self.value = self.value - factor * self.rate * mean / np.maximum(root, 1e-30)


class _TrainedMap:
    """One text encoder's map, while it is fitted."""

    def __init__(self, arrays: variants.Arrays, pairs: Sequence[Pair], encoder: str) -> None:
        self.arrays = {name: part.astype(np.float64) for name, part in arrays.items()}
        features = self._features([pair.example.features.images.astype(np.float64) for pair in pairs], pairs)
        self._center = features.mean(axis=0)
        spread = float(np.sqrt(np.square(features - self._center).sum(axis=1).mean()))
        if "norms" in self.arrays:
            size = 1.0  # directions are fitted
        else:
            size = float(np.sqrt(np.mean([np.square(pair.example.word[encoder]).mean() for pair in pairs])))
        weights, bias = self.arrays["weights"], self.arrays["bias"]
        self._weights = _Adam(weights, _RATE * size / max(spread, 1e-12))
        self._mean = _Adam(bias + self._center @ weights, _RATE * size)

    def _features(self, images: Sequence[np.ndarray], pairs: Sequence[Pair]) -> np.ndarray:
        means = np.stack([own.mean(axis=0) for own in images])
        style = np.array([float(pair.concept.learnable_property == "style") for pair in pairs])
        return variants.lifted(self.arrays, means, style)

    def predict(self, images: Sequence[np.ndarray], pairs: Sequence[Pair]) -> np.ndarray:
        """float64 (n, V * D). images: (any number, d) of each concept. What `step` goes by is remembered."""
        self._seen = self._features(images, pairs) - self._center
        self._raw = self._seen @ self._weights.value + self._mean.value
        return variants.finished(self.arrays, self._raw)

    def step(self, gradient: np.ndarray, factor: float) -> None:
        """gradient: (n, V * D), of the mean loss by what `predict` gave."""
        gradient = variants.gradient_before(self.arrays, self._raw, gradient)
        self._weights.step(self._seen.T @ gradient, factor)
        self._mean.step(gradient.sum(axis=0), factor)

    def fitted(self) -> dict[str, np.ndarray]:
        """The map's arrays as they are now: float32."""
        weights = self._weights.value
        changed = {"weights": weights, "bias": self._mean.value - self._center @ weights}
        return {name: part.astype(np.float32) for name, part in {**self.arrays, **changed}.items()}


def refine(
    fitted: Predictor, pairs: Sequence[Pair], backbone: Backbone, config: JobConfig, steps: int, size: int
) -> Predictor:
    """The predictor with maps that took `steps` steps, where that lowers the loss of concepts that are left out.

    fitted: `predictor.fit` of the examples, of which `pairs` are all or some. A tenth of them, 32 at most, is left out
    of a fit of the same variants and of the steps; their loss is compared before and after. A map that isn't better
    stays as `fitted` has it. size: concepts of a step, with one sample each. The same arguments give the same maps to
    the bit on the same machine. Raises ValueError where a word can't be learned from its concept.
    """
    config = config.model_copy(update={"stopping": StoppingConfig()})
    maps, refinements = dict(fitted.maps), []
    for count in fitted.counts:
        own = [pair for pair in pairs if len(next(iter(pair.example.word.values()))) == count]
        own.sort(key=lambda pair: predictor.order(pair.example))
        left_out = predictor.left_out(len(own), _MOST_LEFT_OUT)
        train = [pair for pair, out in zip(own, left_out, strict=True) if not out]
        test = [pair for pair, out in zip(own, left_out, strict=True) if out]
        if not train or not test:
            continue
        encoders = [encoder for number, encoder in fitted.maps if number == count]
        start = predictor.fit_again([pair.example for pair in train], fitted, count)
        trained = {name: _TrainedMap(start.maps[count, name].arrays, train, name) for name in encoders}
        _train(trained, train, backbone, config, steps, size)
        after: dict[tuple[int, str], Map] = {
            (count, name): replace(start.maps[count, name], arrays=one.fitted())
            for name, one in trained.items()
        }
        both = [Predictor(fitted.model, fitted.scorer, found) for found in (start.maps, after)]
        losses = _losses(both, test, backbone, config, size)
        before, now = map(float, losses.mean(axis=1))
        ids = tuple(pair.example.concept_id for pair in test)
        refinements.append(Refinement(count, steps, len(train), ids, before, now))
        if refinements[-1].is_better:
            maps |= after
    return replace(fitted, maps=maps, refinements=tuple(refinements))


def begun(pair: Pair) -> Concept:
    """The concept as it begins from its learned word, with one sample a step."""
    vectors = {name: tuple(map(tuple, part.tolist())) for name, part in pair.example.word.items()}
    return replace(
        pair.concept,
        initializer_token="",
        init_from="learned.safetensors",
        initial_vectors=vectors,
        predictor=None,
        num_vectors=len(next(iter(vectors.values()))),
        vectors_added_at=(),
        per_image_probability=0.0,
        context_weight=0.0,
        context_every=1,
        context_prompts=(),
        batch_size=1,
        steps=1,
    )


def _train(
    maps: dict[str, _TrainedMap],
    pairs: Sequence[Pair],
    backbone: Backbone,
    config: JobConfig,
    steps: int,
    size: int,
) -> None:
    """Takes the steps: concepts in a seeded order, features of some of their images each time."""
    rng = np.random.default_rng(_SEED)
    order = [pairs[index] for index in rng.permutation(len(pairs))]
    groups = _groups(order, size)
    packs = _Packs(groups, backbone, config)
    for step in range(steps):
        if step % len(groups) == 0:
            turns = rng.permutation(len(groups))
        group, pack = groups[turns[step % len(groups)]], packs.pack(turns[step % len(groups)])
        images = [_some(pair.example.features.images, rng) for pair in group]
        predicted = {name: one.predict(images, group) for name, one in maps.items()}
        _, gradient = _losses_and_gradient(pack, predicted)
        factor = min(1.0, (step + 1) / _WARM_UP_STEPS) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for name, one in maps.items():
            one.step(gradient[name] / len(group), factor)
        if (step + 1) % 50 == 0:
            logger.info("the maps took %d of %d steps", step + 1, steps)


class _Packs:
    """The packs of groups of concepts. The last ones are kept, as their images are encoded and lie on the device."""

    def __init__(self, groups: Sequence[Sequence[Pair]], backbone: Backbone, config: JobConfig) -> None:
        self._groups, self._backbone, self._config = groups, backbone, config
        self._kept: dict[int, Pack] = {}
        self._steps = [0] * len(groups)

    def pack(self, number: int) -> Pack:
        """That of a group, at the step where its last turn left it."""
        if number not in self._kept:
            if len(self._kept) >= max(1, _KEPT_CONCEPTS // len(self._groups[0])):
                oldest = next(iter(self._kept))
                self._steps[oldest] = self._kept.pop(oldest).tasks[0].step
            self._kept[number] = _pack(self._groups[number], self._backbone, self._config)
            for task in self._kept[number].tasks:
                task.step = self._steps[number]
        return self._kept[number]


def _groups(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Parts of `size` at most whose images have one shape."""
    by_shape: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        by_shape.setdefault(pair.concept.shape, []).append(pair)
    return [same[first : first + size] for same in by_shape.values() for first in range(0, len(same), size)]


def _some(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random part of the images' features, so that the map doesn't rely on single images: float64."""
    kept = rng.random(len(images)) < _KEPT
    kept[rng.integers(len(images))] = True
    return images[kept].astype(np.float64)


def _pack(pairs: Sequence[Pair], backbone: Backbone, config: JobConfig) -> Pack:
    """The concepts as they begin from their learned words, with one sample each."""
    pack = Pack(backbone, config, len(pairs))
    for pair in pairs:
        task = ConceptTask(begun(pair), backbone, config)
        task.tensors["loss_scale"].clamp_(max=256)
        pack.add(task)
    return pack


def _losses_and_gradient(
    pack: Pack, predicted: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of each concept with its predicted word: losses (n,), and gradients (n, V * D) by text encoder."""
    tasks = pack.tasks
    shape = (len(tasks), tasks[0].concept.num_vectors, -1)
    parts = {
        name: torch.tensor(part.reshape(shape), dtype=torch.float32).flatten(0, 1)
        for name, part in predicted.items()
    }
    rows = pack.backbone.join(parts).unflatten(0, shape[:2])
    for task, own in zip(tasks, rows, strict=True):
        task.tensors["vectors"].copy_(own)
    losses, gradient = pack.losses_and_gradient()
    for task in tasks:
        task.step += 1  # other draws the next time
    scales = torch.cat([task.tensors["loss_scale"] for task in tasks])
    scaled = gradient.unflatten(0, shape[:2]) / scales[:, None, None]
    finite = torch.nan_to_num(scaled, 0.0, 0.0, 0.0).to("cpu", torch.float64).flatten(0, 1)
    by_encoder = {
        name: part.numpy().reshape(len(tasks), -1) for name, part in pack.backbone.split(finite).items()
    }
    return losses.cpu().double().numpy(), by_encoder


def _losses(
    predictors: Sequence[Predictor], pairs: Sequence[Pair], backbone: Backbone, config: JobConfig, size: int
) -> np.ndarray:
    """The mean loss of each concept with the word that each predictor gives it: (predictors, n).

    The draws depend on the concepts' seeds alone.
    """
    found: list[list[np.ndarray]] = [[] for _ in predictors]
    for group in _groups(pairs, size):
        pack = _pack(group, backbone, config)
        count = pack.tasks[0].concept.num_vectors
        for own, fitted in zip(found, predictors, strict=True):
            for task in pack.tasks:
                task.step = 0
            words = [
                fitted.word(pair.example.features.images, count, pair.concept.learnable_property)
                for pair in group
            ]
            predicted = {name: np.stack([word[name].reshape(-1) for word in words]) for name in words[0]}
            own.append(np.mean([_losses_and_gradient(pack, predicted)[0] for _ in range(_DRAWS)], axis=0))
    return np.stack([np.concatenate(own) for own in found])
