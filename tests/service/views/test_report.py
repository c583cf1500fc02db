"""report.html: self-contained, worst first, nothing from a manifest becomes markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import examples
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import report


def written(store: Store) -> str:
    report.write(store, StoredResults.read(store))
    return Path(store.path("report.html")).read_text("utf-8")


def rows(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<tr data-status="(\w+)" data-kind="\w*"[^>]*><td data-v="([^"]*)"', page)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_failed_first_then_the_worst(store: Store) -> None:
    for concept_id, score in (("good", 0.9), ("bad", 0.3), ("fair", 0.6)):
        examples.finish(store, concept_id, clip_image_similarity=score)
    examples.fail(store, "broken", "image x.png: doesn't exist")
    page = written(store)
    assert rows(page) == [("failed", "broken"), ("done", "bad"), ("done", "fair"), ("done", "good")]
    assert "3 done, 1 failed; mean CLIP image similarity 0.600 [0.300, 0.900]" in page
    assert "image x.png: doesn&#39;t exist" in page


def test_nothing_comes_from_elsewhere(store: Store) -> None:
    examples.finish(store, "a")
    page = written(store)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "://" not in page
    assert page.count("data:image/jpeg;base64,") == 3 + 2 + 2, "training images, before, after"


def test_what_ended_by_a_rule_says_so(store: Store) -> None:
    examples.finish(store, "a", steps=2, stopped="clip", best_step=1)
    examples.finish(store, "b", steps=2, stopped="steps", best_step=2)
    examples.finish(store, "c", steps=2, stopped="dvar", best_step=None)
    examples.finish(store, "d", steps=2, stopped="steps", best_step=None)
    page = written(store)
    assert page.count('data-v="2">2<br><small>by clip, best at 1</small></td>') == 1
    assert page.count('data-v="2">2<br><small>best at 2</small></td>') == 1
    assert page.count('data-v="2">2<br><small>by dvar</small></td>') == 1
    assert page.count('data-v="2">2</td>') == 1


def test_text_of_a_manifest_is_text(store: Store) -> None:
    evil = "<script>alert(1)</script>"
    examples.finish(
        store,
        "a",
        placeholder_token=evil,
        initializer_token=evil,
        tags={evil: '"' + evil},
        nearest_words={"clip_l": [evil], "clip_g": [evil]},
    )
    examples.fail(store, "b", evil)
    page = written(store)
    assert evil not in page
    assert page.count("<script") == 1
    assert page.count("clip_g: &lt;script&gt;") == 1


def test_the_nearest_words_are_shown(store: Store) -> None:
    """By text encoder where there are several."""
    examples.finish(store, "a", nearest_words={"clip_l": ["cat", "dog"]})
    both = {"clip_l": ["cat", "dog"], "clip_g": ["cow"]}
    examples.finish(store, "b", embedding_dims=dict.fromkeys(both, 4), nearest_words=both)
    page = written(store)
    assert "near: cat, dog<" in page
    assert "near: clip_l: cat, dog; clip_g: cow<" in page


def test_many_concepts_are_linked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "EMBEDDED", 2)
    for index in range(3):
        examples.finish(store, f"c{index}")
    page = written(store)
    assert "data:image" not in page
    assert "keep this page in the results folder" in page
    links = re.findall(r'<img loading="lazy" class="strip" src="([^"]*)"', page)
    assert len(links) == 9
    assert all((Path(store.root) / link).is_file() for link in links)


def test_missing_scores_and_pictures(store: Store) -> None:
    scores = dict.fromkeys(
        (
            "clip_image_similarity",
            "clip_image_similarity_initializer",
            "clip_text_similarity",
            "clip_text_similarity_initializer",
        )
    )
    examples.finish(store, "a", **scores)
    store.remove("concepts/a/training.png")
    assert rows(written(store)) == [("done", "a")]


def test_empty(store: Store) -> None:
    assert rows(written(store)) == []
