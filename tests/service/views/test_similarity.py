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
    return np.stack([direction(row[None]) for row in found]) if count else found


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
