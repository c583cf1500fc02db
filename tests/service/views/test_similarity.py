"""Similar words: the nearest of each, in any tiling, in the table, the report and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import examples
from tests.support.commands import textinv
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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    examples.finish(store, "cat", [[1, 0, 0, 0]])
    examples.finish(store, "dog", [[0, 1, 0, 0]], norms=[1.5])
    examples.finish(store, "kitten", [[2, 0.1, 0, 0], [2, 0, 0.1, 0]])
    examples.finish(store, "other-model", [[1, 0, 0]], embedding_dim=3)
    examples.fail(store, "bad", "x")
    results_table.write(store, StoredResults.read(store))
    return store


def test_columns_of_the_results(store: Store) -> None:
    rows = {row["concept_id"]: row for row in pq.read_table(store.path("results.parquet")).to_pylist()}
    assert rows["cat"]["nearest_concept"] == "kitten"
    assert rows["kitten"]["nearest_concept"] == "cat"
    assert rows["cat"]["nearest_concept_cosine"] == pytest.approx(2 / np.hypot(2, np.hypot(0.05, 0.05)))
    assert rows["dog"]["nearest_concept"] == "kitten"
    assert rows["other-model"]["nearest_concept"] is None, "words of two models can't be compared"
    assert rows["bad"]["nearest_concept"] is None
    assert rows["kitten"]["vectors"] == [pytest.approx([2, 0.1, 0, 0]), pytest.approx([2, 0, 0.1, 0])]


def test_many_groups(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pq.read_table(store.path("results.parquet"))
    monkeypatch.setattr(results_table, "ROWS_PER_GROUP", 2)
    assert results_table.write(store, StoredResults.read(store)) == 5
    assert pq.ParquetFile(store.path("results.parquet")).num_row_groups == 3
    assert pq.read_table(store.path("results.parquet")) == before


def test_the_report_has_them(store: Store) -> None:
    report.write(store, StoredResults.read(store))
    page = Path(store.path("report.html")).read_text("utf-8")
    assert "Words that are most alike" in page
    assert page.index("<td>cat</td><td>kitten</td>") < page.index("<td>dog</td><td>kitten</td>")


def test_the_command(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("words", store.uri) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "<dog>: norm 1.50; near cat, dog"
    assert lines[4] == "most alike (cosine of the means of their vectors):"
    assert lines[5] == "  0.999  <cat>  <kitten>"
    for like in ("<Cat>", "cat"):
        assert textinv("words", store.uri, "--like", like, "-n", "1") == 0
        assert capsys.readouterr().out.splitlines() == [
            "<cat>: norm 1.00; near cat, dog",
            "  0.999  <kitten>",
        ]


def test_mistakes(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("words", store.uri, "--like", "<cart>") == 2
    assert "no learned word '<cart>'; did you mean '<cat>'?" in capsys.readouterr().err
    assert textinv("words", str(tmp_path / "none")) == 2
    assert "none has no learned words" in capsys.readouterr().err
