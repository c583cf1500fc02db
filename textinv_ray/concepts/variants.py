"""Ways to fit the map from image features to vectors, and the choice among them by cross-validation over concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from textinv_ray.concepts.ridge import PENALTIES, Ridge, folds

LANDMARKS = 256
"""The most concepts that the kernel compares with: more would make the file of a large catalogue too large."""
_LANDMARK_SEED = 0
_SMALLEST = 1e-6  # of a kernel's eigenvalues, relative to the largest


@dataclass(frozen=True)
class Data:
    """The examples that a map is fitted on."""

    x: np.ndarray
    """float64 (n, d): mean image features of a concept."""
    y: np.ndarray
    """float64 (n, V, D): its learned vectors."""
    style: np.ndarray
    """float64 (n,): 1 for styles, 0 for objects."""
    weights: np.ndarray | None
    """float64 (n,): by the word's score, of mean 1; None where a score isn't known."""

    def part(self, chosen: np.ndarray) -> Data:
        """The examples where `chosen`, bool (n,), is true."""
        weights = None if self.weights is None else self.weights[chosen] / self.weights[chosen].mean()
        return Data(self.x[chosen], self.y[chosen], self.style[chosen], weights)


@dataclass(frozen=True)
class Variant:
    """What differs from plain ridge regression of the vectors."""

    name: str
    lift: str = ""
    """What is done to features before the linear map: see `_lift`."""
    is_direction: bool = False
    """Directions are fitted; predicted vectors get the mean norm of the learned ones."""
    is_weighted: bool = False
    """Concepts count by the score of their words."""


VARIANTS = (
    Variant("ridge"),
    Variant("kernel", lift="kernel"),
    Variant("direction", is_direction=True),
    Variant("apart", lift="apart"),
    Variant("weighted", is_weighted=True),
    Variant("standardised", lift="standardised"),
)
"""Of those whose R2 is equal to three digits the first is taken. `apart`: objects and styles by maps of their own."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """A map of one variant."""

    arrays: Arrays
    """float64: `weights` (features after the lift, V * D), `bias` (V * D,), and what the lift needs."""
    penalty: float
    """See `ridge.Ridge`."""
    r2: float
    """1 - (squared error) / (that of the mean), over the vectors of all folds, each predicted from the others."""


def available(data: Data, fewest: int) -> list[Variant]:
    """The variants that the examples allow. fewest: objects and styles each that `apart` takes."""
    styles = int(data.style.sum())
    lacking = set()
    if min(styles, len(data.style) - styles) < fewest:
        lacking.add("apart")
    if data.weights is None or np.ptp(data.weights) == 0:
        lacking.add("weighted")
    return [variant for variant in VARIANTS if variant.name not in lacking]


def choose(data: Data, fewest: int) -> tuple[Fitted, str, dict[str, float]]:
    """The map of the variant that predicts held-out vectors best, its name, and R2 by variant. fewest: see `available`.

    The same examples give the same map to the bit.
    """
    found = {variant.name: fit(data, variant) for variant in available(data, fewest)}
    best = max(found, key=lambda name: round(found[name].r2, 3))
    return found[best], best, {name: one.r2 for name, one in found.items()}


def fit(data: Data, variant: Variant) -> Fitted:
    """The map with the penalty of PENALTIES that predicts held-out vectors best; of equal ones with the largest."""
    errors, total = np.zeros(len(PENALTIES)), 0.0
    for held in folds(len(data.x)):
        train, test = data.part(~held), data.part(held)
        total += float(np.square(test.y - train.y.mean(axis=0)).sum())
        for index, arrays in enumerate(_solutions(train, variant, PENALTIES)):
            errors[index] += np.square(
                test.y.reshape(len(test.y), -1) - predict(arrays, test.x, test.style)
            ).sum()
    best = int(len(PENALTIES) - 1 - errors[::-1].argmin())
    (arrays,) = _solutions(data, variant, PENALTIES[best : best + 1])
    return Fitted(arrays, PENALTIES[best], 1 - float(errors[best]) / total if total else 0.0)


def fit_again(data: Data, variant: Variant, penalty: float) -> Arrays:
    """The map of other examples by the same variant and penalty."""
    (arrays,) = _solutions(data, variant, [penalty])
    return arrays


def held_out(data: Data, variant: Variant, penalty: float) -> np.ndarray:
    """The vectors of each example by a map that is fitted on the other folds: float64 (n, V, D)."""
    found = np.empty_like(data.y)
    for held in folds(len(data.x)):
        (arrays,) = _solutions(data.part(~held), variant, [penalty])
        found[held] = predict(arrays, data.x[held], data.style[held]).reshape(found[held].shape)
    return found


def predict(arrays: Arrays, x: np.ndarray, style: np.ndarray) -> np.ndarray:
    """float64 (n, V * D). x: (n, d), style: (n,), as in Data."""
    return finished(arrays, lifted(arrays, x, style) @ arrays["weights"] + arrays["bias"])


def finished(arrays: Arrays, raw: np.ndarray) -> np.ndarray:
    """What is done to the linear map's results: vectors of a map of directions get their norms. raw: (n, V * D)."""
    if "norms" not in arrays:
        return raw
    vectors = raw.reshape(len(raw), len(arrays["norms"]), -1)
    return np.asarray((vectors * _to_norms(arrays, vectors)).reshape(len(raw), -1))


def gradient_before(arrays: Arrays, raw: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The gradient by `raw` of what has `gradient` by `finished(arrays, raw)`: (n, V * D) each."""
    if "norms" not in arrays:
        return gradient
    vectors = raw.reshape(len(raw), len(arrays["norms"]), -1)
    own, units = gradient.reshape(vectors.shape), vectors * _to_norms(arrays, vectors)
    units /= np.maximum(np.linalg.norm(units, axis=2, keepdims=True), 1e-12)
    across = own - (own * units).sum(axis=2, keepdims=True) * units
    return np.asarray((across * _to_norms(arrays, vectors)).reshape(len(raw), -1))


def _to_norms(arrays: Arrays, vectors: np.ndarray) -> np.ndarray:
    """Factors (n, V, 1) that give vectors (n, V, D) the map's norms."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=2), 1e-12)
    return np.asarray((arrays["norms"] / lengths)[:, :, None])


def takes(arrays: Arrays) -> int:
    """d: how many numbers an image's features must have."""
    if "landmarks" in arrays:
        return int(arrays["landmarks"].shape[1])
    return len(arrays["weights"]) // 2 - 1 if "apart" in arrays else len(arrays["weights"])


def _solutions(data: Data, variant: Variant, penalties: Sequence[float]) -> list[dict[str, np.ndarray]]:
    """The arrays of the map for each penalty."""
    arrays = _lift(variant.lift, data.x)
    y = data.y
    if variant.is_direction:
        norms = np.linalg.norm(y, axis=2)
        arrays["norms"] = norms.mean(axis=0)
        y = y / np.maximum(norms, 1e-12)[:, :, None]
    weights = data.weights if variant.is_weighted else None
    solver = Ridge(lifted(arrays, data.x, data.style), y.reshape(len(y), -1), weights)
    solved = [solver.solution(penalty) for penalty in penalties]
    return [{**arrays, "weights": w, "bias": b} for w, b in solved]


def _lift(name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """What a lift keeps of the examples' features. "kernel": Nystroem's approximation of a Gaussian kernel."""
    if name == "standardised":
        return {"scale": np.maximum(x.std(axis=0), 1e-12)}
    if name == "apart":
        return {"apart": np.ones(1)}
    if name != "kernel":
        return {}
    order = np.random.default_rng(_LANDMARK_SEED).permutation(len(x))
    landmarks = x[np.sort(order[:LANDMARKS])]
    distances = _squared_distances(landmarks, landmarks)
    width = np.array([max(float(np.median(distances)), 1e-12)])  # the usual choice, of squared distances
    values, vectors = np.linalg.eigh(np.exp(-distances / width))
    kept = values > _SMALLEST * values[-1]
    mixing = vectors[:, kept] / np.sqrt(values[kept])
    return {"landmarks": landmarks, "mixing": mixing, "width": width}


def lifted(arrays: Arrays, x: np.ndarray, style: np.ndarray) -> np.ndarray:
    """What the linear map takes: (n, features after the lift). x: (n, d), style: (n,), as in Data."""
    if "scale" in arrays:
        return np.asarray(x / arrays["scale"])
    if "landmarks" in arrays:
        kernel = np.exp(-_squared_distances(x, arrays["landmarks"]) / arrays["width"])
        return np.asarray(kernel @ arrays["mixing"])
    if "apart" in arrays:
        # A number more, so that each kind has a mean of its own
        own = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        return np.concatenate([own * (1 - style)[:, None], own * style[:, None]], axis=1)
    return x


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, d), (m, d) -> (n, m)."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.maximum(squares - 2 * a @ b.T, 0.0)
