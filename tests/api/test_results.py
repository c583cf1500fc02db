"""What was learned, as Python objects, read from an output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import examples
from textinv_ray import UserError, open_results
from textinv_ray.api.results import Results
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table


@pytest.fixture
def store(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> Store:
    """An output of two words, one of which got worse, and a concept that failed."""
    store = Store(str(tmp_path / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), tmp_path)
    vectors = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    for concept_id, score in (("cat", 0.75), ("dog", 0.25)):
        examples.finish(
            store, concept_id, vectors.tolist(), embedding_dims={"clip_l": 32}, clip_image_similarity=score
        )
    examples.fail(store, "bad", "image <x>.png: doesn't exist")
    results_table.write(store, StoredResults.read(store))
    return store


@pytest.fixture
def results(store: Store) -> Results:
    return open_results(store.uri)


def test_concepts_by_name(results: Results, store: Store) -> None:
    assert list(results) == ["cat", "dog"]
    assert results.failed == {"bad": "image <x>.png: doesn't exist"}
    cat = results["cat"]
    assert (cat.concept_id, cat.token, cat.result) == ("cat", "<cat>", store.result("cat"))
    assert cat.scores["clip_image_similarity"] == 0.75
    assert cat.scores["clip_image_similarity_initializer"] == 0.5
    assert {name: (part.shape, part.dtype.name) for name, part in cat.vectors.items()} == {
        "clip_l": ((1, 32), "float32")
    }
    assert results.scores["clip_image_similarity"].mean == 0.5
    assert results.table()["concept_id"].to_pylist() == ["cat", "dog", "bad"]


def test_concepts_without_a_word(results: Results) -> None:
    with pytest.raises(KeyError, match=r"bad: image <x>\.png: doesn't exist"):
        results["bad"]
    with pytest.raises(KeyError, match=r"cats: no such concept; did you mean 'cat'\?"):
        results["cats"]


def test_pictures(results: Results, store: Store) -> None:
    cat = results["cat"]
    assert cat.samples().captions == ("a photo of <cat> (seed 0)", "a photo of <cat> (seed 1)")
    assert [picture.size for picture in cat.samples(0)] == [(8, 8), (8, 8)]
    assert len(cat.training_images()) == 3
    with pytest.raises(UserError, match=r"cat has no samples of step 7 \(there are: 0, 2\)"):
        cat.samples(7)
    store.remove("concepts/cat/training.png")
    with pytest.raises(UserError, match=r"cat has no training\.png any more"):
        cat.training_images()
    assert "data:image/png" in results._repr_html_(), "the others are shown"


def test_a_notebook_shows_a_table(results: Results) -> None:
    html = results._repr_html_()
    assert html.count("<tr>") == 4
    assert html.count("data:image/png") == 2 * 3 * 2
    assert "0.500 -&gt; 0.750" in html
    assert "0.500 -&gt; 0.250 (worse)" in html
    assert "failed: image &lt;x&gt;.png" in html
    assert "<x>" not in html
    assert "<cat>" not in html


def test_a_notebook_shows_a_concept(results: Results) -> None:
    html = results["cat"]._repr_html_()
    assert html.count("data:image/png") == 3 + 2 + 2
    assert "<td>clip_image_similarity</td><td>0.750</td>" in html
    assert "<cat>" not in html


def test_elsewhere_they_are_text(results: Results) -> None:
    assert repr(results["cat"]) == "<cat>: CLIP image similarity 0.500 -> 0.750, 2 steps"
    lines = repr(results).splitlines()
    assert lines[0].startswith("2 learned in ")
    assert lines[0].endswith("/out, 1 failed")
    assert lines[-1] == "  bad failed: image <x>.png: doesn't exist"


def test_pictures_of_prompts(results: Results) -> None:
    pictures = results.generate("a <cat> and a <dog>", n=2, seed=5, steps=1)
    assert pictures.captions == ("a <cat> and a <dog> (seed 5)", "a <cat> and a <dog> (seed 6)")
    again = results["cat"].generate("a {} and a <dog>", n=1, seed=6, steps=1)
    difference = np.asarray(pictures[1]).astype(int) - np.asarray(again[0])
    assert abs(difference).max() <= 1, "of the seed, not of the batch"


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a <cow>", {}, "no learned word '<cow>'"),
        ("a <cat>", {"n": 0}, "n must be 1 or more"),
        ("a <cat>", {"size": 12}, "size a multiple of 8"),
        ("a <cat>", {"steps": 0}, "review.num_inference_steps"),
        ("a <cat>", {"guidance": 0.5}, "review.guidance_scale"),
        ("a " * 100 + "<cat>", {"steps": 1}, "would be cut off"),
    ],
)
def test_what_is_said_of_wrong_prompts(
    results: Results, prompt: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        results.generate(prompt, **options)  # type: ignore[arg-type]


def test_no_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none has no job\.json: give the output of a job"):
        open_results(tmp_path / "none")
