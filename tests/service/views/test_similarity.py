"""Similar words: the nearest of each, in any tiling, in the table, the report and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import report, results_table
from textinv_ray.service.views.similarity import direction, most_alike, nearest


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    # Small whole numbers: many equal cosines, so that ties are met.
    found = np.random.default_rng(seed).integers(-1, 2, (count, dim)).astype(np.float32)
    return np.stack([direction({"clip_l": row[None]}) for row in found]) if count else found


@given(st.integers(0, 24), st.integers(1, 4), st.integers(0, 99), st.integers(1, 9))
def test_the_nearest_of_each_in_any_tiling(count: int, dim: int, seed: int, tile: int) -> None:
    words = unit(count, dim, seed)
    index, cosine = nearest(words, tile)
    cosines = words.astype(np.float64) @ words.astype(np.float64).T
    for row in range(count):
        others = [(cosines[row, other], other) for other in range(count) if other != row]
        if not others:
            assert index[row] == -1
            continue
        assert index[row] != row
        assert cosines[row, index[row]] == pytest.approx(max(others)[0], abs=1e-6)
        assert cosine[row] == pytest.approx(max(others)[0], abs=1e-6)


def test_a_word_for_two_encoders_points_where_both_do() -> None:
    """The cosine of two words is the mean of the encoders' cosines, whatever the norms of their vectors are."""
    rng = np.random.default_rng(0)

    def word(scale: float) -> dict[str, np.ndarray]:
        parts = {"clip_l": rng.normal(size=(2, 3)), "clip_g": scale * rng.normal(size=(2, 5))}
        return {name: vectors.astype(np.float32) for name, vectors in parts.items()}

    one, other = word(1), word(100)
    means = [[word[name].mean(axis=0) for name in ("clip_l", "clip_g")] for word in (one, other)]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(*means, strict=True)]
    assert direction(one).shape == (8,)
    assert direction(one) @ direction(one) == pytest.approx(1, abs=1e-6)
    assert direction(one) @ direction(other) == pytest.approx(sum(cosines) / 2, abs=1e-6)
    empty = {"clip_l": np.zeros((1, 3), np.float32), "clip_g": np.ones((1, 5), np.float32)}
    assert np.isfinite(direction(empty)).all()


def test_each_pair_once_the_most_alike_first() -> None:
    found = [("a", "b", 0.5), ("b", "a", 0.5), ("c", "a", 0.9), ("d", "b", 0.1)]
    assert most_alike(found, 2) == [("a", "c", 0.9), ("a", "b", 0.5)]


def test_columns_of_the_results(similar_words: Store) -> None:
    rows = {
        row["concept_id"]: row for row in pq.read_table(similar_words.path("results.parquet")).to_pylist()
    }
    assert rows["cat"]["nearest_concept"] == "kitten"
    assert rows["kitten"]["nearest_concept"] == "cat"
    assert rows["cat"]["nearest_concept_cosine"] == pytest.approx(2 / np.hypot(2, np.hypot(0.05, 0.05)))
    assert rows["dog"]["nearest_concept"] == "kitten"
    assert rows["other-model"]["nearest_concept"] is None, "words of two models can't be compared"
    assert rows["bad"]["nearest_concept"] is None
    assert rows["kitten"]["vectors"] == [pytest.approx([2, 0.1, 0, 0]), pytest.approx([2, 0, 0.1, 0])]


def test_many_groups(similar_words: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pq.read_table(similar_words.path("results.parquet"))
    monkeypatch.setattr(results_table, "ROWS_PER_GROUP", 2)
    assert results_table.write(similar_words, StoredResults.read(similar_words)) == 5
    assert pq.ParquetFile(similar_words.path("results.parquet")).num_row_groups == 3
    assert pq.read_table(similar_words.path("results.parquet")) == before


def test_the_report_has_them(similar_words: Store) -> None:
    report.write(similar_words, StoredResults.read(similar_words))
    page = Path(similar_words.path("report.html")).read_text("utf-8")
    assert "Words that are most alike" in page
    assert page.index("<td>cat</td><td>kitten</td>") < page.index("<td>dog</td><td>kitten</td>")
