"""Finding learned words by name in several outputs and files."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.support import examples
from textinv_ray.concepts.word_files import store_word, write_word
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode


@pytest.fixture
def output(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    examples.finish(store, "cat", [[1, 0, 0, 0]])
    examples.finish(store, "ink", [[0, 1, 0, 0], [0, 0, 1, 0]])
    examples.finish(store, "plain", [[0, 0, 0, 1]], placeholder_token="sks")
    return store


def test_words_of_a_prompt(output: Store) -> None:
    lexicon = Lexicon([output.uri])
    assert lexicon.words_in("a <Cat> in the style of <ink>, <cat>") == ("<cat>", "<ink>")
    assert lexicon.words_in("a photo of SKS") == ("sks",)
    assert lexicon.words_in("he asks 3 < 5 and 7 > 2") == ()
    assert lexicon.word("<INK>")["clip_l"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_unknown_words_name_the_nearest(output: Store) -> None:
    lexicon = Lexicon([output.uri])
    with pytest.raises(UserError, match="no learned word '<cart>'; did you mean '<cat>'"):
        lexicon.words_in("a photo of <cart>")
    with pytest.raises(UserError, match=r"no learned word '<zebra>' \(known: <cat>, <ink>, sks\)"):
        lexicon.words_in("<zebra>")


def test_mixtures(output: Store) -> None:
    """examples.finish stores a word's vectors reversed as its initial ones."""
    lexicon = Lexicon([output.uri])
    assert lexicon.words_in("a <Cat:0.5>, <cat:.5:SKS> and <CAT>, <cat:0.5>") == (
        "<cat:0.5>",
        "<cat:.5:sks>",
        "<cat>",
    )
    half = np.sqrt(0.5)
    np.testing.assert_allclose(lexicon.word("<cat:0.5>")["clip_l"], [[half, 0, 0, half]], atol=1e-6)
    np.testing.assert_allclose(lexicon.word("<cat:.5:sks>")["clip_l"], [[half, 0, 0, half]], atol=1e-6)
    assert lexicon.word("<cat:1>")["clip_l"].tolist() == [[1, 0, 0, 0]]
    assert lexicon.word("<ink:0>")["clip_l"].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_a_word_may_be_called_as_a_mixture(output: Store) -> None:
    examples.finish(output, "odd", [[2, 2, 2, 2]], placeholder_token="<cat:0.5>")
    lexicon = Lexicon([output.uri])
    assert lexicon.words_in("<cat:0.5>") == ("<cat:0.5>",)
    assert lexicon.word("<cat:0.5>")["clip_l"].tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<cart:0.5>", "no learned word '<cart>'; did you mean '<cat>'"),
        ("<cat:0.5:inq>", "no learned word '<inq>'; did you mean '<ink>'"),
        ("<cat:1.5>", "<cat:1.5>: 1.5 is not between 0 and 1"),
        ("<cat:-1>", "<cat:-1>: -1.0 is not between 0 and 1"),
        ("<cat:0.5:ink>", "words of other sizes can't be mixed: clip_l 2 x 4 and clip_l 1 x 4"),
        ("<owl:0.5>", "the initial vectors of '<owl>' are not known: give its output, not its file"),
    ],
)
def test_mixtures_that_cannot_be_made(output: Store, tmp_path: Path, text: str, message: str) -> None:
    owl = write_word("a1111", "", {"clip_l": np.ones((2, 4), np.float32)})
    (tmp_path / "owl.safetensors").write_bytes(owl[""])
    with pytest.raises(UserError, match=re.escape(message)):
        Lexicon([output.uri, str(tmp_path / "owl.safetensors")]).words_in(text)


def test_initial_vectors_that_are_missing_or_damaged(output: Store) -> None:
    output.write_concept("cat", "initial_embeds.safetensors", b"torn")
    with pytest.raises(UserError, match=r"cat: 'initial_embeds.safetensors' is not a safetensors file"):
        Lexicon([output.uri]).word("<cat:0.5>")
    output.remove("concepts/cat/initial_embeds.safetensors")
    with pytest.raises(UserError, match=r"'<cat>' are not known: .* was written before they were stored"):
        Lexicon([output.uri]).word("<cat:0.5>")


@pytest.mark.parametrize("place", ["local", "memory"])
def test_several_outputs_and_files(output: Store, tmp_path: Path, place: str) -> None:
    folder = str(tmp_path / "more") if place == "local" else "memory://lexicon"
    other = Store(f"{folder}/out")
    examples.finish(other, "dog")
    owl = write_word("a1111", "", {"clip_l": np.ones((2, 4), np.float32)})
    Store(folder).write("owl.safetensors", owl[""])
    lexicon = Lexicon([output.uri, other.uri, f"{folder}/owl.safetensors"])
    assert lexicon.words_in("<dog> <owl> <cat>") == ("<dog>", "<owl>", "<cat>")
    assert lexicon.word("<dog>")["clip_l"].tolist() == [[1, 2, 3, 4]]
    assert lexicon.word("<owl>")["clip_l"].tolist() == [[1] * 4] * 2
    if place == "memory":
        fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("place", ["local", "memory"])
def test_words_for_two_encoders(tmp_path: Path, place: str) -> None:
    """From an output, a file of both, and the two files of diffusers' script, of which the first is named."""
    folder = str(tmp_path) if place == "local" else "memory://encoders"
    word = {"clip_l": np.ones((2, 768), np.float32), "clip_g": np.full((2, 1280), 2, np.float32)}
    store = Store(f"{folder}/out")
    examples.finish(store, "cat", embedding_dims={"clip_l": 768, "clip_g": 1280})
    store.write_concept("cat", "learned_embeds.safetensors", store_word("<cat>", word))
    # Beside an output's own file, a second one is nothing of its word
    other = write_word("diffusers", "<cat>", {"clip_g": word["clip_g"] + 1})[""]
    store.write_concept("cat", "learned_embeds_2.safetensors", other)
    files = Store(folder)
    files.write("owl.safetensors", write_word("comfyui", "<owl>", word)[""])
    for suffix, data in write_word("diffusers", "<fox>", word).items():
        files.write(f"my-fox{suffix}.safetensors", data)
    lexicon = Lexicon([store.uri, f"{folder}/owl.safetensors", f"{folder}/my-fox.safetensors"])
    assert lexicon.words_in("<cat> <owl> <fox>") == ("<cat>", "<owl>", "<fox>")
    for token in ("<cat>", "<owl>", "<fox>"):
        found = lexicon.word(token)
        assert list(found) == ["clip_l", "clip_g"], token
        assert all(np.array_equal(found[name], vectors) for name, vectors in word.items()), token
    if place == "memory":
        fsspec.filesystem("memory").store.clear()


def test_a_word_in_two_outputs(output: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "other"))
    examples.finish(other, "cat")
    lexicon = Lexicon([output.uri, other.uri])
    assert lexicon.words_in("<ink>") == ("<ink>",), "only what is used matters"
    with pytest.raises(UserError, match=f"'<cat>' is in {output.uri} and {other.uri}"):
        lexicon.words_in("<cat>")
    assert Lexicon([output.uri, output.uri]).words_in("<cat>") == ("<cat>",)


def test_results_parquet_that_is_behind(output: Store) -> None:
    """results.parquet isn't used when the store has more concepts."""
    results_table.write(output, StoredResults.read(output))
    assert Lexicon([output.uri]).words_in("<cat> <ink> sks") == ("<cat>", "<ink>", "sks")
    examples.finish(output, "new")
    examples.fail(output, "bad")
    assert Lexicon([output.uri]).words_in("<new>") == ("<new>",)


def test_results_parquet_of_an_earlier_run_is_not_used(
    output: Store, tiny_sd: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    """A run that was stopped has written results, and no results.parquet."""
    examples.begin(output, examples.config(tiny_sd, tiny_clip), tmp_path)
    results_table.write(output, StoredResults.read(output))
    examples.finish(output, "cat", placeholder_token="<tom>")
    job = output.job()
    assert job is not None
    for code in (None, ExitCode.TERMINATED):
        output.write_job(job.model_copy(update={"exit_code": code}))
        assert "<tom>" in Lexicon([output.uri]).tokens
    output.write_job(job.model_copy(update={"exit_code": ExitCode.DONE}))
    assert "<cat>" in Lexicon([output.uri]).tokens, "the table stands for thousands of files"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "nothing has no learned words; give the output of `textinv invert`"),
        ("none.safetensors", "none.safetensors' doesn't exist"),
        ("bad.safetensors", "'bad.safetensors' is not a safetensors file"),
        ("bad.pt", "'bad.pt' is a pickle"),
    ],
)
def test_sources_without_words(tmp_path: Path, source: str, message: str) -> None:
    for name in ("bad.safetensors", "bad.pt"):
        (tmp_path / name).write_bytes(b"bad")
    with pytest.raises(UserError, match=message):
        Lexicon([str(tmp_path / source)])


def test_damaged_word(output: Store) -> None:
    output.write_concept("cat", "learned_embeds.safetensors", b"damaged")
    lexicon = Lexicon([output.uri])
    with pytest.raises(UserError, match="not a safetensors file"):
        lexicon.word("<cat>")
