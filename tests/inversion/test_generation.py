"""An image depends on its own request and seed, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import sampling
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.generation import Request, generate

FAST = ReviewConfig(num_inference_steps=3)


def vectors(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


WORDS = {"<x>": vectors(1), "<y>": vectors(2, 4), "sks": vectors(1, 5)}
REQUESTS = [
    Request("a photo of <x>", ("<x>",), seed=1, count=2),
    Request("a <x> in the style of <y>", ("<x>", "<y>"), seed=7),
    Request("a <x> in the style of <y>", ("<y>", "<x>"), seed=7),
    Request("a cat", negative_prompt="<y> house", words=("<y>",), seed=2, guidance_scale=3.0),
    Request("a cat", seed=2, guidance_scale=3.0, size=24),
    Request("a photo of sks", ("sks",), seed=3),
    Request("a photo of sks", seed=3),
]


def alone(backbone: StableDiffusion, request: Request) -> np.ndarray:
    return generate(backbone, {token: WORDS[token] for token in request.words}, [request], FAST)[0]


def test_alone_and_in_any_batch_the_same(backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone(backbone, request) for request in REQUESTS]
    assert [len(images) for images in expected] == [2, 1, 1, 1, 1, 1, 1]
    together = generate(backbone, WORDS, REQUESTS, FAST)
    monkeypatch.setattr(sampling, "MAX_BATCH_SIZE", 2)
    order = [3, 6, 1, 0, 5, 4, 2]
    shuffled = generate(backbone, WORDS, [REQUESTS[index] for index in order], FAST)
    for index, images in enumerate(expected):
        for other in (together[index], shuffled[order.index(index)]):
            assert np.abs(images.astype(int) - other).max() <= 1


def test_a_seed_is_a_seed_whatever_the_count(backbone: StableDiffusion) -> None:
    many = alone(backbone, Request("a photo of <x>", ("<x>",), seed=5, count=3))
    one = alone(backbone, Request("a photo of <x>", ("<x>",), seed=7))
    assert np.abs(many[2].astype(int) - one[0]).max() <= 1
    assert np.abs(many[1].astype(int) - one[0]).max() > 1


def test_every_part_of_a_request_counts(backbone: StableDiffusion) -> None:
    by_words = generate(backbone, WORDS, REQUESTS, FAST)
    assert np.array_equal(by_words[1], by_words[2]), "the order of words doesn't"
    assert by_words[4].shape == (1, 24, 24, 3)
    assert not np.array_equal(by_words[5], by_words[6]), "a word that isn't the request's is text"
    plain, negative, guided = generate(
        backbone,
        {},
        [
            Request("a cat", seed=2),
            Request("a cat", negative_prompt="house", seed=2),
            Request("a cat", seed=2, guidance_scale=1.5),
        ],
        FAST,
    )
    assert np.abs(plain.astype(int) - negative).max() > 1
    assert np.abs(plain.astype(int) - guided).max() > 1


def test_nothing_to_draw(backbone: StableDiffusion) -> None:
    assert generate(backbone, {}, [], FAST) == []


def test_a_word_is_never_cut_off(backbone: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="would be cut off"):
        generate(backbone, WORDS, [Request("a " * 30 + "<x>", ("<x>",))], FAST)
