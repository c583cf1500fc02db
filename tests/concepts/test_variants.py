"""Variants of the fit: each wins where the words are as it supposes, and all are equal to the bit when fitted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from textinv_ray.concepts import ridge, variants
from textinv_ray.concepts.variants import VARIANTS, Data, Variant

COUNT, DIM, SIZE = 60, 8, 6
BY_NAME = {variant.name: variant for variant in VARIANTS}


def data(noise: float = 0.0, seed: int = 0) -> Data:
    """Words of two vectors, a linear map of their features; every other concept is a style; all have scores."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(COUNT, DIM))
    y = (x @ rng.normal(size=(DIM, 2 * SIZE))).reshape(COUNT, 2, SIZE)
    y += noise * rng.normal(size=y.shape)
    return Data(x, y, np.arange(COUNT) % 2.0, np.full(COUNT, 1.0))


def worlds() -> dict[str, Data]:
    """By the variant that supposes such words."""
    plain = data(1.0)
    rng = np.random.default_rng(5)
    bent = rng.normal(size=(3, DIM))
    curved = np.exp(-0.5 * np.square(plain.x[:, None] - bent).sum(axis=2)) @ rng.normal(size=(3, 2 * SIZE))
    signs = np.where(plain.style == 1, -1.0, 1.0)[:, None, None]
    lengths = rng.uniform(0.2, 5, (COUNT, 1, 1))
    noisy = rng.random(COUNT) < 0.4
    bad = np.where(noisy[:, None, None], 12 * rng.normal(size=plain.y.shape), 0)
    weights = np.where(noisy, 0.01, 1.0)
    scales = np.geomspace(1, 1000, DIM)
    return {
        "ridge": data(0.0),
        "kernel": replace(plain, y=curved.reshape(plain.y.shape)),
        "direction": replace(
            plain, y=lengths * data(0.0).y / np.linalg.norm(data(0.0).y, axis=2)[:, :, None]
        ),
        "apart": replace(plain, y=signs * data(0.0).y),
        "weighted": replace(plain, y=data(0.0).y + bad, weights=weights / weights.mean()),
        "standardised": replace(data(3.0), x=plain.x * scales),
    }


@pytest.mark.parametrize("name", ["kernel", "apart", "weighted"])
def test_each_is_chosen_where_it_holds(name: str) -> None:
    world = worlds()[name]
    fitted, chosen, r2 = variants.choose(world, 10)
    assert chosen == name, r2
    assert fitted.r2 == r2[name] > r2["ridge"] + 0.02
    assert r2 == {one.name: variants.fit(world, one).r2 for one in variants.available(world, 10)}


def test_of_equal_ones_the_plain_one_is_taken() -> None:
    flat = replace(data(), y=np.ones((COUNT, 2, SIZE)))
    _, chosen, r2 = variants.choose(flat, 10)
    assert chosen == "ridge"
    assert r2["ridge"] == 0


def test_what_the_examples_dont_allow_isnt_tried() -> None:
    names = [one.name for one in variants.available(data(), 10)]
    assert names == ["ridge", "kernel", "direction", "apart", "standardised"], "all scores are equal"
    objects = replace(data(), style=np.zeros(COUNT), weights=None)
    assert [one.name for one in variants.available(objects, 10)] == [
        "ridge",
        "kernel",
        "direction",
        "standardised",
    ]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
def test_r2_is_that_of_concepts_that_were_left_out(variant: Variant) -> None:
    """Each by a map that never saw it: recomputed here from the definition."""
    world = worlds()[variant.name]
    fitted = variants.fit(world, variant)
    found = variants.held_out(world, variant, fitted.penalty)
    mean = np.empty_like(world.y)
    for held in ridge.folds(COUNT):
        mean[held] = world.y[~held].mean(axis=0)
    r2 = 1 - np.square(found - world.y).sum() / np.square(mean - world.y).sum()
    assert fitted.r2 == pytest.approx(r2)
    changed = world.y.copy()
    held = next(iter(ridge.folds(COUNT)))
    changed[held] += 100
    again = variants.held_out(replace(world, y=changed), variant, fitted.penalty)
    np.testing.assert_array_equal(again[held], found[held])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
def test_twice_is_equal_to_the_bit(variant: Variant) -> None:
    first, second = (variants.fit(worlds()[variant.name], variant) for _ in range(2))
    assert {name: part.tobytes() for name, part in first.arrays.items()} == {
        name: part.tobytes() for name, part in second.arrays.items()
    }
    assert (first.penalty, first.r2) == (second.penalty, second.r2)
    assert variants.takes(first.arrays) == DIM


def test_directions_have_the_mean_norm() -> None:
    world = worlds()["direction"]
    fitted = variants.fit(world, BY_NAME["direction"])
    found = variants.predict(fitted.arrays, world.x, world.style).reshape(COUNT, 2, SIZE)
    expected = np.linalg.norm(world.y, axis=2).mean(axis=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), np.tile(expected, (COUNT, 1)))


def test_gradients_of_directions_go_back_through_their_norms() -> None:
    """Against differences."""
    rng = np.random.default_rng(0)
    arrays = {"norms": np.array([2.0, 3.0])}
    raw, gradient = rng.normal(size=(4, 10)), rng.normal(size=(4, 10))
    found = variants.gradient_before(arrays, raw, gradient)
    for place in np.ndindex(raw.shape):
        step = np.zeros_like(raw)
        step[place] = 1e-6
        change = variants.finished(arrays, raw + step) - variants.finished(arrays, raw - step)
        assert (change * gradient).sum() / 2e-6 == pytest.approx(found[place], abs=1e-6)
    plain = variants.gradient_before({}, raw, gradient)
    np.testing.assert_array_equal(plain, gradient)


def test_apart_is_two_fits() -> None:
    """What styles are changes little for objects, beyond the penalty that both share."""
    world = data(0.0)
    other = replace(world, y=world.y + 9 * world.style[:, None, None])
    objects = np.zeros(COUNT)

    def predicted(name: str, examples: Data) -> np.ndarray:
        return variants.predict(variants.fit(examples, BY_NAME[name]).arrays, world.x, objects)

    np.testing.assert_allclose(predicted("apart", other), predicted("apart", world), atol=0.1)
    assert np.abs(predicted("ridge", other) - predicted("ridge", world)).max() > 3


def test_the_penalty_grows_with_the_noise() -> None:
    penalties = [variants.fit(data(noise), BY_NAME["ridge"]).penalty for noise in (0.0, 3.0, 100.0)]
    assert penalties[0] == ridge.PENALTIES[0]
    assert penalties == sorted(penalties)
    assert penalties[2] == ridge.PENALTIES[-1]


def test_a_kernel_of_many_concepts_stays_small() -> None:
    rng = np.random.default_rng(0)
    many = Data(rng.normal(size=(400, 4)), rng.normal(size=(400, 1, 3)), np.zeros(400), None)
    fitted = variants.fit(many, BY_NAME["kernel"])
    assert fitted.arrays["landmarks"].shape == (variants.LANDMARKS, 4)
