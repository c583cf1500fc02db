from __future__ import annotations

import numpy as np
import pytest

from textinv_ray.concepts import retrieval
from textinv_ray.concepts.retrieval import Features, retrieval_top1


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("tile", [3, 100])
def test_by_the_mean_cosine_with_each_concepts_views(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the definition written out, with concepts of different numbers of pictures and views."""
    monkeypatch.setattr(retrieval, "_TILE", tile)
    rng = np.random.default_rng(5)
    views = [unit(rng, int(count), 6) for count in rng.integers(1, 5, 11)]
    pictures = [
        np.concatenate([one[:1] + 0.3 * unit(rng, 1, 6), unit(rng, int(count), 6)])
        for one, count in zip(views, rng.integers(1, 4, 11), strict=True)
    ]
    pictures = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in pictures]
    expected = []
    for index, mine in enumerate(pictures):
        hits = []
        for picture in mine:
            means = [np.mean([picture @ view for view in of_concept]) for of_concept in views]
            others = [mean for other, mean in enumerate(means) if other != index]
            hits.append(means[index] > max(others))
        expected.append(float(np.mean(hits)))
    found = retrieval_top1([Features.of(one, other) for one, other in zip(pictures, views, strict=True)])
    assert found == pytest.approx(expected)
    assert 0 < np.mean(found) < 1


def test_the_views_themselves_find_their_concept_and_a_duplicate_is_not_found() -> None:
    rng = np.random.default_rng(6)
    views = unit(rng, 12, 8)
    own = [Features(view[None], view) for view in views]
    assert retrieval_top1(own) == [1.0] * 12
    assert retrieval_top1([*own, own[3]])[3] == 0.0, "a tie is a miss"
    assert retrieval_top1([]) == []


def test_features_are_means_of_views() -> None:
    views = unit(np.random.default_rng(7), 3, 4)
    made = Features.of(np.full((2, 4), 0.5, np.float32), views)
    np.testing.assert_allclose(made.views, views.mean(0))
    assert made.pictures.shape == (2, 4)
