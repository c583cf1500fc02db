"""`textinv compare`: paired by concept, against computations by hand; a page that loads nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import examples
from tests.support.commands import textinv
from textinv_ray.concepts.retrieval import Features
from textinv_ray.service.store import features
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import compare, results_table
from textinv_ray.util.errors import UserError
from textinv_ray.util.statistics import paired_p

BEFORE = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}
AFTER = {"b": 0.7, "c": 0.4, "d": 0.5, "e": 0.9}


def output(folder: Path, scores: dict[str, float], **changes: Any) -> Store:
    store = Store(str(folder))
    for concept_id, score in scores.items():
        judged: dict[str, Any] = {"judge_similarity": None, "judge_similarity_initializer": None}
        examples.finish(store, concept_id, clip_image_similarity=score, **{**judged, **changes})
    return store


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Store, Store]:
    return output(tmp_path / "one", BEFORE), output(tmp_path / "two", AFTER)


def test_pairs(outputs: tuple[Store, Store]) -> None:
    found = compare.compare(*outputs)
    assert (found.only_first, found.only_second) == (1, 1)
    assert [one.concept_id for one in found.concepts] == ["c", "d", "b"]
    assert [one.difference for one in found.concepts] == pytest.approx([-0.1, 0, 0.2])
    changes = {one.name: one for one in found.changes}
    assert changes.keys() == {"clip_image_similarity", "clip_text_similarity"}
    image = changes["clip_image_similarity"]
    assert [image.before.mean, image.after.mean] == pytest.approx([0.5, 1.6 / 3])
    assert image.difference.mean == pytest.approx(0.1 / 3)
    assert image.p == paired_p([0.2, -0.1, 0])
    assert (image.better, image.worse) == (1, 1)
    assert changes["clip_text_similarity"].p == 1


def test_the_judge_ranks_where_there_is_one(tmp_path: Path) -> None:
    one = output(tmp_path / "one", BEFORE, judge_similarity=0.3)
    other = output(tmp_path / "two", AFTER, judge_similarity=0.4)
    assert compare.compare(one, other).score == "judge_similarity"
    assert compare.compare(one, other, "clip_text_similarity").score == "clip_text_similarity"
    with pytest.raises(
        UserError, match=r"no score 'clip' in both outputs.* \(both have clip_image_similarity, "
    ):
        compare.compare(one, other, "clip")


def test_evaluations_of_words_that_were_learned_anew_are_left_out(
    outputs: tuple[Store, Store], caplog: pytest.LogCaptureFixture
) -> None:
    finished_at = 1_700_000_000.5
    for store, times in zip(outputs, ({"b": 1, "c": 1}, {"b": -1, "c": 1}), strict=True):
        rows = [
            {
                "concept_id": name,
                "protocol": "quick",
                "evaluated_at": finished_at + later,
                "dino_similarity": 0.1,
            }
            for name, later in times.items()
        ]
        pq.write_table(pa.Table.from_pylist(rows), store.path("evaluation.parquet"))
    pairs = compare.compare(*outputs, score="quick/dino_similarity").concepts
    assert [pair.concept_id for pair in pairs] == ["c"]
    assert "two: 1 evaluations are of words that were learned anew since" in caplog.text


def test_evaluations_by_the_same_protocol(outputs: tuple[Store, Store]) -> None:
    for store, score in zip(outputs, (0.1, 0.3), strict=True):
        rows = [
            {
                "concept_id": name,
                "protocol": protocol,
                "dino_similarity": score,
                "dino_similarity_without_word": 0.5,
            }
            for name, protocol in (("b", "quick"), ("c", "quick" if score < 0.2 else "paper"))
        ]
        pq.write_table(pa.Table.from_pylist(rows), store.path("evaluation.parquet"))
    changes = {one.name: one for one in compare.compare(*outputs).changes}
    assert changes["quick/dino_similarity"].difference.mean == pytest.approx(0.2)
    assert changes["quick/dino_similarity"].difference.values == 1
    assert not [name for name in changes if "without_word" in name or "paper" in name]
    Path(outputs[0].path("evaluation.parquet")).write_bytes(b"damaged")
    assert "quick/dino_similarity" not in {one.name for one in compare.compare(*outputs).changes}


def test_the_command(
    outputs: tuple[Store, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "c.html"
    page.parent.mkdir()
    assert textinv("compare", outputs[0].uri, outputs[1].uri, "-o", str(page)) == 0
    said = capsys.readouterr().out
    assert "3 concepts in both" in said
    assert "left out: 1 only in A, 1 only in B" in said
    assert re.search(
        r"clip_image_similarity +0\.500 +0\.533 +\+0\.033 \[-0\.100, \+0\.200\] +1\.0000 +1 +1", said
    )
    assert "better in B, by clip_image_similarity:\n  b: 0.500 -> 0.700 (+0.200)" in said
    assert "worse in B, by clip_image_similarity:\n  c: 0.500 -> 0.400 (-0.100)" in said
    assert f"report: {page}" in said
    html = page.read_text("utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    assert "<script" not in html
    assert html.count("data:image/jpeg;base64,") == 2 * (3 + 2 + 2), "training images, A, B of b and of c"


def test_outputs_that_have_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = output(tmp_path / "one", {"a": 0.5}), output(tmp_path / "two", {"b": 0.5})
    assert textinv("compare", one.uri, other.uri) == 2
    assert "have no finished concept in common" in capsys.readouterr().err


def test_names_and_missing_pictures(tmp_path: Path) -> None:
    one, other = (output(tmp_path / name, {"a": score}) for name, score in (("<b>1", 0.1), ("two", 0.9)))
    other.write_concept("a", "samples/step_0000002.png", b"damaged")
    one.remove("concepts/a/training.png")
    compare.write(compare.compare(one, other), one, other, Store(str(tmp_path)), "c.html")
    html = (tmp_path / "c.html").read_text("utf-8")
    assert "&lt;b&gt;1" in html
    assert "<b>1" not in html
    assert html.count("data:image") == 2


def test_retrieval_is_compared(tmp_path: Path) -> None:
    stores = []
    for name, right in (("one", 5), ("two", 10)):
        store = output(tmp_path / name, {f"c{index}": 0.5 for index in range(10)})
        views = np.eye(10, dtype=np.float32)
        for index in range(10):
            shown = index if index < right else 0
            made = Features(views[[shown]], views[index])
            store.write_concept(f"c{index}", features.FILE, features.to_bytes({"judge": made}))
        results_table.write(store, StoredResults.read(store))
        stores.append(store)
    changes = {one.name: one for one in compare.compare(stores[0], stores[1]).changes}
    assert (changes["retrieval_top1"].before.mean, changes["retrieval_top1"].after.mean) == (0.5, 1.0)
    assert changes["retrieval_top1"].better == 5
