"""results.parquet: one row per concept, from the store alone, readable by everybody."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import examples
from textinv_ray.concepts import word_files
from textinv_ray.concepts.retrieval import Features
from textinv_ray.service.store import features
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def read(store: Store) -> pa.Table:
    return pq.read_table(store.path("results.parquet"))


def test_why_learning_ended(store: Store) -> None:
    examples.finish(store, "a", stopped="clip", best_step=1)
    examples.finish(store, "b")
    examples.fail(store, "c", "image c-1.png: is truncated")
    results_table.write(store, StoredResults.read(store))
    assert read(store)["stopped"].to_pylist() == ["clip", "steps", None]
    assert read(store)["best_step"].to_pylist() == [1, None, None]


def test_one_row_per_concept(store: Store) -> None:
    examples.finish(store, "b")
    examples.finish(store, "a", [[0.5, 0, 0, 1]], nearest_words={"clip_l": ["dog"]})
    examples.fail(store, "c", "image c-1.png: is truncated")
    assert results_table.write(store, StoredResults.read(store)) == 3
    table = read(store)
    assert table.schema.field("vectors").type.value_type == pa.list_(pa.float32(), 4)
    first, second, third = table.to_pylist()
    assert (first["concept_id"], first["vectors"]) == ("a", [[0.5, 0, 0, 1]])
    assert (first["nearest_words"], first["norms"]) == ([("clip_l", ["dog"])], [("clip_l", [1.0])])
    assert (second["clip_image_similarity_initializer"], second["clip_image_similarity"]) == (0.5, 0.75)
    assert second["tags"] == [("shelf", "3")]
    assert (third["status"], third["vectors"], third["error"]) == (
        "failed",
        None,
        "image c-1.png: is truncated",
    )


def test_writing_again_gives_the_same(store: Store) -> None:
    examples.finish(store, "a")
    results_table.write(store, StoredResults.read(store))
    before = read(store)
    results_table.write(store, StoredResults.read(store))
    assert read(store) == before
    assert store.names(".") == ["concepts", "results.parquet"], "no temporary folders stay"


def test_words_of_several_vectors(store: Store) -> None:
    examples.finish(store, "a")
    examples.finish(store, "b", [[1, 2, 3, 4], [5, 6, 7, 8]], num_vectors=2)
    results_table.write(store, StoredResults.read(store))
    assert [len(vectors) for vectors in read(store)["vectors"].to_pylist()] == [1, 2]


def test_words_of_two_models(store: Store) -> None:
    examples.finish(store, "a")
    examples.finish(store, "b", [[1, 2, 3]], embedding_dims={"clip_l": 3})
    results_table.write(store, StoredResults.read(store))
    assert read(store)["vectors"].to_pylist() == [[[1, 2, 3, 4]], [[1, 2, 3]]]


def test_words_for_two_encoders(store: Store) -> None:
    """A vector is that of all encoders, one behind another, in the order of `embedding_dims`."""
    word = {"clip_g": np.array([[7, 8, 9]], np.float32), "clip_l": np.array([[1, 2]], np.float32)}
    dims, norms = {"clip_l": 2, "clip_g": 3}, {"clip_l": [1.5], "clip_g": [2.5]}
    nearest = {"clip_l": ["cat"], "clip_g": ["dog", "fox"]}
    examples.finish(store, "a", embedding_dims=dims, norms=norms, nearest_words=nearest)
    store.write_concept("a", "learned_embeds.safetensors", word_files.store_word("<a>", word))
    results_table.write(store, StoredResults.read(store))
    table = read(store)
    assert table.schema.field("vectors").type.value_type == pa.list_(pa.float32(), 5)
    (row,) = table.to_pylist()
    assert row["vectors"] == [[1, 2, 7, 8, 9]]
    assert dict(row["norms"]) == norms
    assert dict(row["nearest_words"]) == nearest


def test_pandas_reads_it(store: Store) -> None:
    examples.finish(store, "a")
    results_table.write(store, StoredResults.read(store))
    frame = pd.read_parquet(store.path("results.parquet"))
    assert np.stack(frame.vectors[0]).tolist() == [[1, 2, 3, 4]]


def test_a_result_counts_more_than_an_old_failure(store: Store) -> None:
    examples.finish(store, "a")
    examples.fail(store, "a", "x")
    results_table.write(store, StoredResults.read(store))
    assert read(store)["status"].to_pylist() == ["done"]


def test_a_damaged_word_is_left_out(store: Store) -> None:
    examples.finish(store, "a")
    store.write_concept("a", "learned_embeds.safetensors", b"damaged")
    results_table.write(store, StoredResults.read(store))
    assert read(store)["vectors"].to_pylist() == [None]


def test_an_empty_store(store: Store) -> None:
    assert results_table.write(store, StoredResults.read(store)) == 0
    assert read(store).num_rows == 0


def test_many_groups_on_a_remote_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_table, "ROWS_PER_GROUP", 2)
    store = Store("memory://many/out")
    for index in range(5):
        examples.finish(store, f"c{index}")
    assert results_table.write(store, StoredResults.read(store)) == 5
    with fsspec.open("memory://many/out/results.parquet") as file:
        assert pq.read_table(file)["concept_id"].to_pylist() == [f"c{index}" for index in range(5)]
        assert pq.ParquetFile(file).num_row_groups == 3
    fsspec.filesystem("memory").store.clear()


def picture(store: Store, index: int, shown: int, encoder: str = "mini-judge") -> None:
    """Gives the concept c<index> views in a direction of its own and two pictures, one of them of c<shown>."""
    views = np.eye(16, dtype=np.float32)
    made = Features(views[[index, shown]], views[index])
    store.write_concept(f"c{index}", features.FILE, features.to_bytes({encoder: made}))


def test_retrieval_in_outputs_of_ten_concepts_and_more(store: Store) -> None:
    for index in range(9):
        examples.finish(store, f"c{index}")
        picture(store, index, index if index % 2 else 0)
    results_table.write(store, StoredResults.read(store))
    assert read(store)["retrieval_top1"].to_pylist() == [None] * 9, "of fewer it says little"
    assert results_table.retrieval(store) == {}
    examples.finish(store, "c9")
    picture(store, 9, 9)
    results_table.write(store, StoredResults.read(store))
    expected = {f"c{index}": 1.0 if index % 2 or not index else 0.5 for index in range(10)}
    assert results_table.retrieval(store) == expected


def test_retrieval_leaves_out_what_cant_be_compared(store: Store) -> None:
    for index in range(12):
        examples.finish(store, f"c{index}")
        picture(store, index, index, "another" if index == 3 else "mini-judge")
    store.write_concept("c5", features.FILE, b"damaged")
    results_table.write(store, StoredResults.read(store))
    assert set(results_table.retrieval(store)) == {f"c{index}" for index in range(12)} - {"c3", "c5"}
